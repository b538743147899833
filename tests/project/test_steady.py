"""No test depends on how fast, how full or how lucky a machine is: the sources of the tests hold
none of what makes one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLOCKS = {
    "time",
    "monotonic",
    "perf_counter",
    "process_time",
    "time_ns",
    "monotonic_ns",
    "perf_counter_ns",
}
MEMORY = {
    "getrusage",
    "ru_maxrss",
    "memory_info",
    "memory_full_info",
    "virtual_memory",
    "cpu_percent",
}
LOOPBACK = {"127.0.0.1", "0.0.0.0", "::1", "localhost", ""}
WATCHED = ("time", "random", "resource")
WAITS = {"join", "wait", "result", "communicate", "settimeout"}
PATIENCE_S = 60

ALLOWED = {
    (
        "tests/labeling_server.py",
        "clock",
    ): "until() waits for an event that must come; the clock only ends a hang",
    ("tests/labeling_server.py", "sleep"): "until() looks again after a moment",
    ("tests/evaluation/test_judges.py", "short wait"): "a setting that no request is sent with",
    (
        "tests/evaluation/test_judge_openai.py",
        "short wait",
    ): "the time-out itself is tested, of a server that never answers",
}
"""What a file may hold all the same, and why."""


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Line and kind of everything in a test's source that makes it fail now and then."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in WATCHED:
            yield (
                node.lineno,
                f"from {node.module}: write {node.module}.name, so that this test sees it",
            )
        elif isinstance(node, ast.Import) and any(
            part.asname and part.name in WATCHED for part in node.names
        ):
            yield node.lineno, "import as: write the module's own name, so that this test sees it"
        elif isinstance(node, ast.Attribute) and node.attr in MEMORY:
            yield node.lineno, "memory of the process: count what is held, as tests/counted.py does"
        elif isinstance(node, ast.Tuple) and _fixed_address(node):
            yield node.lineno, "fixed port: bind to port 0 and ask which one it is"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, kind) for kind in _call(node))


def _call(node: ast.Call) -> Iterator[str]:
    place, name = _named(node.func)
    if place in ("time", "asyncio") and name == "sleep":
        yield "sleep: wait for the event, with labeling.until() if nothing announces it"
    if place == "time" and name in CLOCKS:
        yield "clock: count calls, as tests/counted.py does, or give the code a clock of the test"
    first = [_number(argument) for argument in node.args[:1] if name in WAITS]
    named = [_number(keyword.value) for keyword in node.keywords if keyword.arg == "timeout"]
    if any(seconds is not None and seconds < PATIENCE_S for seconds in first + named):
        yield (
            f"short wait: a busy machine takes longer, and a hang is found after {PATIENCE_S} s as"
            " well"
        )
    if name in ("Random", "default_rng") and not node.args and not node.keywords:
        yield "draw: give the generator a seed (the global ones have theirs from conftest.py)"


def _named(function: ast.expr) -> tuple[str, str]:
    """``np.random.rand`` is ("np.random", "rand")."""
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value), function.attr
    return "", function.id if isinstance(function, ast.Name) else ""


def _number(node: ast.expr) -> float | None:
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value) if is_number else None  # type: ignore[attr-defined]


def _fixed_address(node: ast.Tuple) -> bool:
    """A host and a port that is not left to the system, as ``bind`` takes them."""
    values = [part.value for part in node.elts if isinstance(part, ast.Constant)]
    return (
        len(values) == len(node.elts) == 2
        and values[0] in LOOPBACK
        and type(values[1]) is int
        and values[1] > 0
    )


def test_tests_depend_on_no_time_memory_port_or_luck() -> None:
    files = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "labeling" / "tests").rglob("*.py")])
    found = {
        (path.relative_to(ROOT).as_posix(), line, kind)
        for path in files
        for line, kind in faults(path.read_text(encoding="utf-8"))
    }
    left = [
        f"{file}:{line}: {kind}"
        for file, line, kind in sorted(found)
        if (file, kind.partition(":")[0]) not in ALLOWED
    ]
    assert not left, "\n" + "\n".join(left)
    unused = ALLOWED.keys() - {(file, kind.partition(":")[0]) for file, _, kind in found}
    assert not unused, f"no longer needed: {unused}"


def test_what_makes_a_test_unsteady_is_seen() -> None:
    source = """
from time import sleep
time.sleep(1), asyncio.sleep(1)
assert time.perf_counter() - started < 2
assert process.memory_info().rss < 1e9
server.bind(("127.0.0.1", 8000))
thread.join(10)
subprocess.run(command, timeout=20)
np.random.default_rng()
random.Random()
thread.join(300), queue.get(timeout=120), server.bind(("127.0.0.1", 0)), random.Random(1).shuffle(rows)
import time as t
" ".join(words), np.random.default_rng(0).normal()
"""  # noqa: E501
    found = sorted((line, kind.partition(":")[0]) for line, kind in faults(source))
    assert found == [
        (2, "from time"),
        (3, "sleep"),
        (3, "sleep"),
        (4, "clock"),
        (5, "memory of the process"),
        (6, "fixed port"),
        (7, "short wait"),
        (8, "short wait"),
        (9, "draw"),
        (10, "draw"),
        (12, "import as"),
    ]
