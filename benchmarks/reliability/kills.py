"""SIGKILL at random moments: a killed run must end in the bytes of one that was never killed.

    .venv/bin/python benchmarks/reliability/kills.py --kills 100 --seed 1

A tiny random model goes through SFT, sampling, votes, reward model, one of PPO, DPO and KTO, and
the evaluation. Each run is killed up to ``--most`` times, at a random moment of a stage that is
drawn at random, and then left to end. It is compared with a run from a bare interpreter: every
adapter and the table of results. No artifact that was finished at a kill may be built again; no
work folder, half file or lock may be left.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import hashlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from loop_run import run_afresh, start, write_config  # noqa: E402 (the tests' own way to start a run)
from tiny import tiny_model  # noqa: E402

SCENARIOS = ("ppo", "dpo", "kto", "thumbs")
"""``thumbs`` is KTO on a file of thumbs; the others learn from simulated votes on sampled
answers.
"""
TRAIN = ("sft", "reward", "ppo", "dpo", "kto")
BEGINS, ENDS = (
    re.compile(r"(?:running|resuming) (\S+)"),
    re.compile(r"  (\S+): (?:ran|resumed) in "),
)


def configured(folder: Path, model: Path, scenario: str) -> Path:
    """The configuration of a scenario, in a folder of its own."""
    folder.mkdir(parents=True)
    if scenario != "thumbs":
        return write_config(folder, model, algo=scenario)
    thumbs = folder / "thumbs.jsonl"
    config = write_config(folder, model, algo="kto", label={"source": "file"})
    rows = [json.loads(line) for line in (folder / "demonstrations.jsonl").open(encoding="utf-8")]
    with thumbs.open("w", encoding="utf-8") as file:
        for row in rows:
            for words, up in ((row["response"], True), ("I do not know.", False)):
                file.write(
                    json.dumps({"prompt": row["prompt"], "completion": words, "label": up}) + "\n"
                )
    config.write_text(config.read_text().replace("data:\n", f"data:\n  comparisons: {thumbs}\n", 1))
    return config


def outcome(config: Path) -> dict[str, Any]:
    """What a run comes to: the SHA-256 of every adapter and of the table of results."""
    run = config.parent / "runs" / "t"
    files = sorted((run / "artifacts").glob("*/adapter_model.safetensors"))
    hashes = {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    table = json.loads((run / "summary.json").read_text(encoding="utf-8"))["results"]
    return {
        **hashes,
        "results": hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest(),
    }


def finished(config: Path) -> dict[str, int]:
    """The artifacts that are complete, with the moment at which each manifest was written."""
    return {
        p.parent.name: p.stat().st_mtime_ns
        for p in (config.parent / "runs" / ".store").glob("*/manifest.json")
    }


def working(config: Path) -> str:
    """The stage that was at work when the process died."""
    folders = [p for p in (config.parent / "runs" / ".store" / "work").glob("*") if p.is_dir()]
    return (
        max(folders, key=lambda p: p.stat().st_mtime_ns).name.rpartition("-")[0]
        if folders
        else "between stages"
    )


def left_behind(config: Path) -> Iterator[str]:
    """What should not be there once a run has ended."""
    runs = config.parent / "runs"
    yield from (f"work folder {p.name}" for p in (runs / ".store" / "work").glob("*"))
    yield from (f"half file {p.name}" for p in runs.rglob(".*.part"))
    yield from (f"checkpoints in {p.parent.name}" for p in (runs / ".store").glob("*/checkpoints"))
    for path in [*(runs / ".store" / "locks").glob("*"), runs / "t" / ".lock"]:
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield f"held lock {path.name}"


def watched(config: Path, stage: str = "", wait: float = 0.0) -> tuple[int, str, dict[str, float]]:
    """Run a command and kill it ``wait`` seconds after ``stage`` began, or never: exit code,
    output, and the seconds that each stage took.
    """
    process, output, began, took = start(config), "", {}, {}
    timer = threading.Timer(wait, process.kill)
    for line in process.stdout:
        output += line
        if begins := BEGINS.match(line):
            began[begins[1]] = time.monotonic()
            if begins[1] == stage:
                timer.start()
        elif (ends := ENDS.match(line)) and ends[1] in began:
            took[ends[1]] = time.monotonic() - began[ends[1]]
    code = process.wait(timeout=300)
    timer.cancel()
    return code, output, took


def killed_run(config: Path, moments: list[tuple[str, float]]) -> tuple[list[str], list[str]]:
    """Kill the same command at each of ``moments`` (a stage and seconds after it began), then let
    it end: stages that were hit, and what went wrong.
    """
    hit: list[str] = []
    wrong: list[str] = []
    for stage, wait in [*moments, ("", 0.0)]:
        before = finished(config)
        code, output, _ = watched(config, stage, wait)
        if code == -9:
            hit.append(working(config))
        elif code != 0:
            wrong.append(f"exit {code} after {len(hit)} kills: {output[-1500:]}")
            break
        now = finished(config)
        wrong += [
            f"{name} was built again"
            for name, written in before.items()
            if now.get(name) != written
        ]
        if code == 0:  # ended, perhaps before its moment came
            wrong += left_behind(config)
            break
    return hit, wrong


def drawn(draw: random.Random, took: dict[str, float], most: int) -> list[tuple[str, float]]:
    """Up to ``most`` moments in the order of the stages: those that train three times as often, and
    some just behind the end of a stage.
    """
    stages = list(took)
    weights = [3 if stage in TRAIN else 1 for stage in stages]
    picked = draw.choices(range(len(stages)), weights, k=draw.randint(1, most))
    return [(stages[n], draw.uniform(0, 1.2 * took[stages[n]])) for n in sorted(picked)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="how many kills in all")
    parser.add_argument("--most", type=int, default=5, help="kills of one run at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    stages: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(ROOT):
        folder = Path(scratch)
        model = tiny_model(folder / "model")
        whole: dict[str, dict[str, Any]] = {}
        took: dict[str, dict[str, float]] = {}
        for scenario in arguments.scenarios:
            config = configured(folder / scenario, model, scenario)
            run_afresh(config)
            whole[scenario] = outcome(config)
            config = configured(folder / f"{scenario}-timed", model, scenario)
            code, output, took[scenario] = watched(config)
            if code != 0 or outcome(config) != whole[scenario]:
                failures.append(f"{scenario}: two runs without a kill differ\n{output[-1500:]}")
            print(
                f"{scenario}: "
                + ", ".join(f"{stage} {s:.1f} s" for stage, s in took[scenario].items()),
                flush=True,
            )
        while stages.total() < arguments.kills:
            scenario = arguments.scenarios[runs.total() % len(arguments.scenarios)]
            name = f"{scenario}-{runs.total()}"
            config = configured(folder / name, model, scenario)
            most = min(arguments.most, arguments.kills - stages.total())
            hit, wrong = killed_run(config, drawn(draw, took[scenario], most))
            runs[scenario] += 1
            stages.update(hit)
            if not wrong and outcome(config) != whole[scenario]:
                wrong = [f"ends otherwise: {outcome(config)} instead of {whole[scenario]}"]
            failures += [f"{name} (killed in {', '.join(hit)}): {line}" for line in wrong]
            print(
                f"{name}: killed in {', '.join(hit) or 'nothing'}: {'; '.join(wrong) or 'same'}",
                flush=True,
            )
    print(
        f"\n{stages.total()} kills in {runs.total()} runs ({dict(runs)}), {len(failures)} failures"
    )
    for stage, count in stages.most_common():
        print(f"  {count:4d}  {stage}")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
