"""The code that determines an artifact: the files that its stage imports, and what those import.

Editing a table, the planner or the report therefore builds nothing again. Comments, docstrings and
blank lines do not count: two files that differ in them alone do the same.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import sys
import tokenize
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import prefloop

PACKAGE = prefloop.__name__
ROOT = Path(prefloop.__file__).parent
SPEAKS = frozenset(
    {"prefloop.base.console", "prefloop.base.interrupt", "prefloop.base.redact", "prefloop.errors"}
)
"""Modules that say what happens and put nothing into an artifact."""
SETTINGS = frozenset(
    f"prefloop.config{name}" for name in ("", ".base", ".judge", ".ppo", ".ranges", ".stages")
)
"""Modules that declare settings, whose values are in the key themselves. ``config.common`` computes
warm-up too, so it counts.
"""
RUNTIME = "prefloop.runs.runtime"
"""It loads model and sampler on demand: a stage has the code of those that it ``uses``."""
USED = {"backbone": "prefloop.models.backbone", "generation": "prefloop.rollouts.start"}


def code_of(kind: type, uses: Collection[str]) -> dict[str, str]:
    """The hash of every module of this package that a stage of class ``kind`` runs, by name.

    ``uses``: as ``Stage.uses``. Of a class that is defined outside the package, the modules that
    its file imports count.
    """
    starts = {USED[name] for name in uses if name in USED}
    for each in kind.__mro__[:-1]:
        if each.__module__.partition(".")[0] == PACKAGE:
            starts.add(each.__module__)
        elif (file := getattr(sys.modules.get(each.__module__), "__file__", None)) and Path(
            file
        ).is_file():
            starts |= imported(Path(file).read_text(encoding="utf-8"))
    return {module: _hash(module) for module in sorted(closure(starts))}


def closure(starts: Collection[str]) -> set[str]:
    """The modules of this package that ``starts`` lead to, themselves included."""
    found: set[str] = set()
    open_ = sorted(starts)
    while open_:
        module = open_.pop()
        if module not in found | SPEAKS | SETTINGS:
            found.add(module)
            open_ += [] if module == RUNTIME else _imports(module)
    return found


def imported(source: str) -> set[str]:
    """Modules of this package that Python source imports, in functions too; not those for type
    checking alone.
    """
    nodes = list(ast.walk(ast.parse(source)))
    skipped = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for inner in ast.walk(part)
    }
    imports = (
        node
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in skipped
    )
    named = {name for node in imports for name in _named(node) if name != PACKAGE}
    return named | _attributes(nodes)


def _named(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _file(alias.name))
    elif node.module and node.module.partition(".")[0] == PACKAGE:
        for alias in node.names:
            if node.module == PACKAGE and alias.name == "*":
                yield from filter(None, map(prefloop.where, prefloop.__all__))
                continue
            place = prefloop.where(alias.name) if node.module == PACKAGE else None
            whole = place or f"{node.module}.{alias.name}"
            yield from (name for name in (whole if _file(whole) else node.module,) if _file(name))


def _attributes(nodes: list[ast.AST]) -> set[str]:
    """Modules of the public names that are used as ``prefloop.NAME``, under whichever name the
    package was imported.
    """
    called = {
        alias.asname or PACKAGE
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == PACKAGE
    }
    used = (
        prefloop.where(node.attr)
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in called
    )
    return {module for module in used if module}


def _file(module: str) -> Path | None:
    """The file of a module of this package, ``None`` where there is none."""
    first, *rest = module.split(".")
    if first != PACKAGE:
        return None
    place = ROOT.joinpath(*rest)
    return next(
        (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None
    )


@functools.cache
def _sources() -> dict[str, str]:
    """The source of every module, as it is when the first key is made: an edit during a run is of
    the next one.
    """
    files = {
        ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in ROOT.rglob("*.py")
    }
    return {
        name.removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for name, path in files.items()
    }


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    return tuple(sorted(imported(_sources()[module])))


@functools.cache
def _hash(module: str) -> str:
    return hashlib.sha256(bare(_sources()[module]).encode()).hexdigest()


def bare(source: str) -> str:
    """Python source without comments, docstrings, blank lines and blanks at the ends of lines."""
    lines = source.splitlines(keepends=True)
    cuts = [
        (token.start, token.end)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    texts: set[int] = set()
    """Lines that end inside a text: a blank one is a part of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno:
            texts |= set(range(node.lineno, node.end_lineno))
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            cuts.append(
                (
                    _column(lines, node.lineno, node.col_offset),
                    _column(lines, node.end_lineno, node.end_col_offset),
                )
            )
    for (top, left), (bottom, right) in sorted(cuts, reverse=True):
        kept = lines[top - 1][:left] + lines[bottom - 1][right:]
        lines[top - 1 : bottom] = [kept, *[""] * (bottom - top)]
        texts -= set(range(top, bottom))
    return "".join(
        line if number in texts else line.rstrip() + "\n"
        for number, line in enumerate(lines, start=1)
        if number in texts or line.strip()
    )


def _column(lines: list[str], line: int | None, byte: int | None) -> tuple[int, int]:
    """A place of ``ast``, whose columns count bytes of UTF-8, as ``tokenize`` counts: line and
    character.
    """
    assert line is not None and byte is not None
    return line, len(lines[line - 1].encode()[:byte].decode())


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Files that differ between two answers of ``code_of``, by their path in the package."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ["/".join(name.split(".")[1:]) + ".py" for name in names]
