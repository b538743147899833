"""Other people's rows and files: any JSON object ends in a record or a finding, any file in a table
or one message.

    python benchmarks/reliability/rows.py --seed 0 --size 20000

``--size`` rows are read one by one and again as files of every layout by every loader, a twentieth
of them by every command too; then the damaged files of ``FILES`` go through ``prefloop check``.
Prints counts and every failure with its reproduction; exit 1 when there is one.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import pyarrow as pa
import pyarrow.parquet as pq
from by_words import ByWords
from rows_checked import Told, check_files, check_rows, run_command, run_readers
from tiny import tiny_model

PAIRS = [
    {"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)
]
LINES = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
ARRAY = json.dumps(PAIRS).encode()
LIMIT_S = 120.0
"""Processor seconds from which on the check of a file counts as hanging."""


def _parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(PAIRS), stream)
    return stream.getvalue()


def _arrow() -> bytes:
    stream = io.BytesIO()
    table = pa.Table.from_pylist(PAIRS)
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def _csv() -> bytes:
    return b"prompt,chosen,rejected\n" + b"".join(
        f"q {i},yes {i},no {i}\n".encode() for i in range(40)
    )


def _flipped(content: bytes, draw: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    return bytes(found)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(1, len(content))]


def _with(piece: bytes) -> Callable[[bytes, random.Random], bytes]:
    def change(content: bytes, draw: random.Random) -> bytes:
        at = draw.randrange(len(content))
        return content[:at] + piece + content[at:]

    return change


BASES: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.json": ARRAY,
    "a.csv": _csv(),
    "a.jsonl.gz": gzip.compress(LINES, mtime=0),
    "a.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    "a.parquet": _parquet(),
    "a.arrow": _arrow(),
}
CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "bits turned": _flipped,
    "NUL": _with(b"\0"),
    "bad byte": _with(b"\xff"),
    "quote": _with(b'"'),
    "NaN": _with(b" NaN "),
    "bracket": _with(b"]"),
    "escape": _with(b"\x1b]0;owned\x07"),
}


def _huge(size: int) -> bytes:
    return json.dumps({"prompt": "q", "chosen": "y" * size, "rejected": "no"}).encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "UTF-16": ("a.jsonl", lambda: LINES.decode().encode("utf-16")),
    "UTF-16 without a mark": ("a.jsonl", lambda: LINES.decode().encode("utf-16-le")),
    "UTF-32": ("a.jsonl", lambda: LINES.decode().encode("utf-32")),
    "mark twice": ("a.jsonl", lambda: b"\xef\xbb\xbf" * 2 + LINES),
    "CR alone": ("a.jsonl", lambda: LINES.replace(b"\n", b"\r")),
    "empty": ("a.jsonl", lambda: b""),
    "row of 10 MB": ("a.jsonl", lambda: LINES + _huge(10_000_000)),
    "row of 100 MB": ("a.jsonl.gz", lambda: gzip.compress(LINES + _huge(100_000_000), 1, mtime=0)),
    "zeros of 400 MB": ("a.jsonl.gz", lambda: gzip.compress(bytes(400_000_000), 1, mtime=0)),
    "zeros of 400 MB in CSV": (
        "a.csv.gz",
        lambda: gzip.compress(_csv() + bytes(400_000_000), 1, mtime=0),
    ),
    "zeros of 400 MB in an array": (
        "a.json.gz",
        lambda: gzip.compress(b'["' + b"0" * 400_000_000, 1, mtime=0),
    ),
    "300,000 keys": (
        "a.jsonl",
        lambda: json.dumps({**PAIRS[0], **{f"k{i}": i for i in range(300_000)}}).encode(),
    ),
    "a key of 1 MB": (
        "a.jsonl",
        lambda: json.dumps({"k" * 1_000_000: 1, **PAIRS[0]}).encode() + b"\n" + LINES,
    ),
    "100,000 levels": (
        "a.jsonl",
        lambda: LINES + b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ),
    "100,000 levels in an array": (
        "a.json",
        lambda: b"[" + LINES.split(b"\n")[0] + b"," + b"[" * 100_000,
    ),
    "100,000 columns": (
        "a.csv",
        lambda: ",".join(f"c{i}" for i in range(100_000)).encode() + b"\n1,2\n",
    ),
    "one bad element": ("a.json", lambda: ARRAY.replace(b'"question 7"', b"oops")),
    "footer of 2^31": (
        "a.parquet",
        lambda: _parquet()[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    ),
    "footer below 0": (
        "a.parquet",
        lambda: _parquet()[:-8] + (2**32 - 1).to_bytes(4, "little") + b"PAR1",
    ),
}


def places(folder: Path) -> Iterator[tuple[str, Path]]:
    """What is no file of rows: folders, links in a ring, pipes, devices."""
    (folder / "empty").mkdir()
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "deep").mkdir()
    (folder / "deep" / "self").symlink_to(folder / "deep")
    os.mkfifo(folder / "pipe.jsonl")
    yield "empty folder", folder / "empty"
    yield "ring of links", folder / "ring"
    yield "folder in itself", folder / "deep"
    yield "pipe", folder / "pipe.jsonl"
    yield "device", Path("/dev/zero")
    yield "long name", folder / ("n" * 300)


def check(name: str, path: Path, told: Told) -> float:
    """``prefloop check`` of one file, alone and with a quarantine; returns the processor seconds of
    both.
    """
    aside = path.parent / "aside"
    aside.mkdir(exist_ok=True)
    started = time.process_time()
    for more in ([], ["--quarantine", str(aside)]):
        with told.within(f"prefloop check of {name}{' with --quarantine' if more else ''}"):
            run_command(["check", str(path), *more], told)
    return time.process_time() - started


def files(seed: int, rounds: int, told: Told, heavy: bool = True) -> dict[str, float]:
    """Whole files: every base with every change, ``rounds`` times, and those of ``FILES``; without
    the ``heavy`` ones for a quick look.

    Returns the processor seconds of each.
    """
    draw = random.Random(seed)
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for base, content in BASES.items():
                for change, make in CHANGES.items():
                    path = Path(folder) / base
                    path.write_bytes(make(content, draw))
                    name = f"{base}, {change}, round {number} of seed {seed}"
                    took[name] = check(name, path, told)
        for name, (file, made) in FILES.items():
            if heavy or not any(size in name for size in ("MB", "300,000")):
                (Path(folder) / file).write_bytes(made())
                took[name] = check(name, Path(folder) / file, told)
        for name, path in places(Path(folder)):
            took[name] = check(name, path, told)
    return took


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=20_000)
    given = parser.parse_args()
    told = Told()
    check_rows(given.size, given.seed, told)
    check_files(given.size, given.seed, told)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder))
        reward = ByWords(model)
        every = functools.partial(run_readers, model=model, reward=reward)
        check_files(max(given.size // 20, 1), given.seed + 1, told, every)
    took = files(given.seed, max(given.size // 10_000, 1), told)
    told.failures += [
        f"{name} took {seconds:.0f} s" for name, seconds in took.items() if seconds > LIMIT_S
    ]
    slowest = max(took, key=lambda name: took[name])
    for what, count in sorted(told.counts.items()):
        print(f"{what:<24} {count:>9,}")
    print(f"slowest file: {slowest}, {took[slowest]:.1f} s of processor time")
    for failure in told.failures:
        print(f"FAILED {failure}")
    sys.exit(1 if told.failures else 0)


if __name__ == "__main__":
    main()
