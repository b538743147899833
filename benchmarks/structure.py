"""The map of the package: rooms, arrows between them, arrows that run up, circles, lines.

    python benchmarks/structure.py            # of this checkout
    python benchmarks/structure.py --root src # of another one's sources

A room is a package or a module right under ``prefloop``. An arrow is an import of one room by
another, wherever it stands; those for type checking alone count too. Rooms are put on floors so
that few arrows run up: what imports nothing stands on the ground.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "prefloop"


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each module imports of the package, at its top, in a function or for type checking."""
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups that import each other in a loop (Tarjan's strongly connected components), largest
    first.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted((group for group in found if len(group) > 1), key=len, reverse=True)


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of every room: one above all that it imports, arrows inside a circle left out."""
    of = {name: number for number, group in enumerate(circles(graph)) for name in group}

    def same(a: str, b: str) -> bool:
        return a in of and of.get(a) == of.get(b)

    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            below = [floor(other) for other in graph.get(name, ()) if not same(name, other)]
            found[name] = 1 + max(below, default=0)
        return found[name]

    for name in graph:
        floor(name)
    return found


def lines(folder: Path) -> int:
    """Lines of Python under a folder."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))


def main() -> None:
    """Print the map."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1] / "src")
    root = parser.parse_args().root
    known = modules(root)
    graph = imports(known)
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        room = ".".join(name.split(".")[:2])
        aims = {".".join(other.split(".")[:2]) for other in others}
        rooms[room] = rooms.get(room, set()) | {aim for aim in aims if aim not in (room, PACKAGE)}
    rooms.pop(PACKAGE, None)
    storeys = floors(rooms)
    for number in sorted(set(storeys.values()), reverse=True):
        print(
            f"{number:3} "
            f" {', '.join(sorted(r.partition('.')[2] for r, f in storeys.items() if f == number))}"
        )
    arrows = [(a, b) for a, others in rooms.items() for b in others]
    up = [(a, b) for a, b in arrows if storeys[b] >= storeys[a]]
    print(
        f"{len(rooms)} rooms, {max(storeys.values())} floors, {len(arrows)} arrows, {len(up)} of"
        " them up"
    )
    for kind, of in (("rooms", rooms), ("modules", graph)):
        loops = circles(of)
        print(
            f"circles of {kind}: {len(loops)}" + "".join(f"\n  {', '.join(loop)}" for loop in loops)
        )
    print(f"{len(known)} modules; {lines(root):,} lines under {root.name}/")
    if (tests := root.parent / "tests").is_dir():
        print(f"{lines(tests):,} lines under tests/")


if __name__ == "__main__":
    main()
