"""Do runs at the ends of the ranges of their numbers end well? A tiny model, one number at its
least or largest in each run.

    python benchmarks/reliability/settings_runs.py --seed 0 --size 60

Each run ends well or is refused by name within a minute. Prints counts, and each failure with what
repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "config")]
PATIENCE = 60
"""Seconds."""
MORE_WORK = {
    "steps",
    "epochs",
    "candidates",
    "samples",
    "samples_per_prompt",
    "members",
    "rounds",
    "resamples",
    "poll_seconds",
    "max_retries",
}
"""What a run takes longer with, as is meant: the largest of these is not run."""
MAIN = (
    "sft",
    "sample",
    "label",
    "reward",
    "ppo",
    "preference",
    "evaluate",
    "generation",
    "backbone",
    "seed",
    "data",
)
"""Sections that a run without server, judge or benchmark reads."""


def edges() -> list[tuple[str, Any]]:
    """Fields of the sections in ``MAIN`` with the least and the largest number that they take."""
    from test_ranges import FIELDS, tree

    found = []
    for number in FIELDS:
        span, name = number.span, number.path.rpartition(".")[2]
        if (
            span is None
            or number.path.split(".")[0] not in MAIN
            or ".asking." in number.path
            or number.shape == "dict"
        ):
            continue
        ends = [
            span.kind(span.least),
            *([0] if span.zero else []),
            *([] if name in MORE_WORK else [span.kind(span.most)]),
        ]
        found += [(f"{number.path} {end}", tree(number, end)) for end in ends]
    return found


def runs(folder: Path, model: Path, seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """Whole runs at the edges, drawn by the seed; what they have in common is made once and
    reused.
    """
    import loop_run

    from prefloop.config.load import _over

    chosen, counts, failures = edges(), Counter[str](), []
    random.Random(seed).shuffle(chosen)
    path = loop_run.write_config(folder, model)
    usual = yaml.safe_load(path.read_text())
    usual["ppo"]["steps"], usual["evaluate"] = 1, {"samples": 1, "resamples": 50}
    for what, tree in chosen[:count]:
        algo = "dpo" if what.startswith("preference") else "ppo"
        path.write_text(
            yaml.safe_dump(
                _over(
                    usual,
                    {"algo": algo, "label": {"annotators": [{"name": "a", "noise": 0.1}]}} | tree,
                )
            )
        )
        process = loop_run.start(path)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
            code = process.wait()
        except Exception:
            process.kill()
            output, code = f"did not end in {PATIENCE} s", -1
        good = "Traceback" not in output and (code == 0 or (code == 2 and "error: " in output))
        counts["ends well" if good and not code else "refused" if good else "FAILED"] += 1
        print(
            f"  {what}:"
            f" {code if good else 'FAILED'}{'' if code == 0 else ' ' + output[-200:].strip().replace(chr(10), ' ')}",  # noqa: E501
            flush=True,
        )
        if not good:
            failures.append(f"{what} (--algo {algo}): exit {code}: {output[-600:]}")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=60, help="runs, of a few seconds each")
    options = parser.parse_args()
    from tiny import tiny_model

    with tempfile.TemporaryDirectory() as place:
        counts, failures = runs(
            Path(place), tiny_model(Path(place) / "model"), options.seed, options.size
        )
    print(
        f"runs: {sum(counts.values())} of {len(edges())} edges; "
        + ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
    )
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
