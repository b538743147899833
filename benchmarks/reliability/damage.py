"""Damage what a run left on disk, give the same command again, compare.

    python benchmarks/reliability/damage.py --seed 0 --size 120

A tiny run is made once, and stopped once inside each training stage. In copies of these one file is
damaged: a bit, its length, its type, its JSON, where it leads. The same command must then end with
the same adapters and results, or with exit code 2 and a message.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

OWN = ("manifest.json", "summary.json", "sealed.json", "state.json", "trainer_state.json")
STOPS = {"sft": 4, "reward": 4, "ppo": 4, "dpo": 4}


def _bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes()) or bytearray(1)
    place = draw.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def _digit(path: Path, draw: random.Random) -> None:
    """Another digit in the place of one: a figure that still can be read."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if 48 <= byte < 58] or [0]
    place = draw.choice(places)
    content[place : place + 1] = str(draw.randrange(10)).encode()
    path.write_bytes(content)


def _json(path: Path, draw: random.Random) -> None:
    """A key less, a value of another type, or a name that leads elsewhere."""
    tree: Any = json.loads(path.read_bytes()) if path.suffix == ".json" else None
    places = [tree] if isinstance(tree, dict) and tree else []
    for place in places:
        places += [value for value in place.values() if isinstance(value, dict) and value]
    place = draw.choice(places) if places else {"": 0}
    key = draw.choice(sorted(place))
    match draw.randrange(4):
        case 0:
            del place[key]
        case 1:
            place[key] = draw.choice([None, [], {}, -1, 1e300, "x", True, "../../x"])
        case 2:
            place[f"../{key}"] = place.pop(key)
        case 3:
            tree = draw.choice([[], None, 3, {}, [tree]])
    path.write_text(json.dumps(tree))


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "bit": _bit,
    "digit": _digit,
    "empty": lambda path, draw: os.truncate(path, 0),
    "half": lambda path, draw: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path, draw: path.write_bytes(bytes(path.stat().st_size)),
    "not UTF-8": lambda path, draw: path.write_bytes(b"\xff\xfe\x00{"),
    "gone": lambda path, draw: path.unlink(),
    "folder": lambda path, draw: (path.unlink(), path.mkdir()),
    "link": lambda path, draw: path.symlink_to(
        path.rename(path.parent.parent / f"moved-{path.name}")
    ),
    "JSON": _json,
}


def command(
    arguments: list[str], run: Callable[[Sequence[str]], None] | None = None
) -> tuple[int | str, str]:
    """Exit code, or the traceback, and what was printed, of the pipeline (or ``run``) in this
    process.
    """
    from pipelines.rlhf import main
    from prefloop.cli import guarded

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return guarded(run or main, arguments), said.getvalue()
        except Exception:
            return traceback.format_exc(), said.getvalue()


def outcome(runs: Path) -> dict[str, Any]:
    """What must not change: the adapters' bytes and every reported figure."""
    summary = json.loads((runs / "t" / "summary.json").read_text())
    found: dict[str, Any] = {
        k: summary.get(k) for k in ("results", "control", "reward_model", "annotators", "samples")
    }
    for slot in ("sft", "reward", "ppo", "dpo"):
        path = runs / "t" / "artifacts" / slot / "adapter_model.safetensors"
        found[slot] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return found


def stopped(base: list[str], stage: str) -> None:
    """Run until ``stage`` has logged its step; what a kill leaves stays."""
    from prefloop.runs.runtime import Runtime

    emit = Runtime.emit

    def dies(self: Any, **event: Any) -> None:
        emit(self, **event)
        if (
            event.get("stage") == stage
            and event.get("event") == "step"
            and event["step"] == STOPS[stage]
        ):
            raise KeyboardInterrupt

    with patch.object(Runtime, "emit", dies):
        code, said = command(base)
    assert code == 130, (code, said[-2000:])


def prepare(folder: Path) -> tuple[Path, dict[str, tuple[Path, str]], dict[str, dict[str, Any]]]:
    """The configuration, each state's folder of runs and algorithm, and what each algorithm comes
    to.
    """
    from loop_run import write_config
    from tiny import tiny_model

    config = write_config(folder, tiny_model(folder / "model"))
    states, expected = {}, {}
    for algo in ("ppo", "dpo"):
        runs = folder / f"finished-{algo}"
        for stage in [s for s in STOPS if s == algo or (algo == "ppo" and s not in ("ppo", "dpo"))]:
            stopped(["--config", str(config), "--algo", algo, "--output", str(runs)], stage)
            shutil.copytree(runs, folder / f"stopped-{stage}", symlinks=True)
            states[f"stopped in {stage}"] = (folder / f"stopped-{stage}", algo)
        code, said = command(["--config", str(config), "--algo", algo, "--output", str(runs)])
        assert code == 0, (code, said[-2000:])
        states[f"finished {algo}"], expected[algo] = (runs, algo), outcome(runs)
    return config, states, expected


def told_of(runs: Path, algo: str) -> str | int:
    """A traceback of the report or the export of a damaged run, which may refuse it and may not
    change it.
    """
    from prefloop.cli import _main

    asked = (
        ["report", str(runs / "t")],
        ["export", f"{runs / 't'}:{algo}", str(runs.parent / "exported")],
    )
    codes = [command(arguments, _main)[0] for arguments in asked]
    shutil.rmtree(runs.parent / "exported", ignore_errors=True)
    return next((code for code in codes if isinstance(code, str)), 0)


def targets(state: str, runs: Path) -> list[Path]:
    """Files that may be damaged in a state: of the checkpoints and the work where it was stopped,
    else of store and run.
    """
    root = (
        next((runs / ".store" / "work").glob(f"{state.split()[-1]}-*"))
        if state.startswith("stopped")
        else runs
    )
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [
        path
        for path in files
        if "locks" not in path.parts and path.name not in (".lock", "report.html")
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=120)
    asked = parser.parse_args(arguments)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="damage-") as place:
        config, states, expected = prepare(Path(place))
        for number in range(asked.size):
            draw = random.Random(f"{asked.seed}:{number}")
            state = sorted(states)[number % len(states)]
            source, algo = states[state]
            runs = Path(place) / "tried"
            shutil.copytree(source, runs, symlinks=True)
            files = targets(state, runs)
            own = [path for path in files if path.name in OWN]
            path = draw.choice(own if own and draw.random() < 0.5 else files)
            kind = draw.choice(sorted(DAMAGES))
            DAMAGES[kind](path, draw)
            told = told_of(runs, algo) if state.startswith("finished") else 0
            code, said = command(["--config", str(config), "--algo", algo, "--output", str(runs)])
            code = told or code
            found = (
                "refused"
                if code == 2 and "error: " in said
                else "traceback"
                if isinstance(code, str)
                else "code"
            )
            found = (
                ("same" if outcome(runs) == expected[algo] else "changed") if code == 0 else found
            )
            counts[state, found] += 1
            if found not in ("same", "refused"):
                what = f"{kind} in {path.relative_to(runs)}"
                print(
                    f"--seed {asked.seed} number {number}: {state}, {what}: {found} {code}",
                    flush=True,
                )
            shutil.rmtree(runs)
    columns = ("same", "refused", "changed", "traceback", "code")
    print("state".ljust(20), *(c.rjust(10) for c in columns))
    for state in sorted({state for state, _ in counts}):
        print(state.ljust(20), *(str(counts[state, c]).rjust(10) for c in columns))
    return int(
        any(count for (_, found), count in counts.items() if found not in ("same", "refused"))
    )


if __name__ == "__main__":
    sys.exit(main())
