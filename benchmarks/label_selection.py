"""What a label is worth: reward accuracy on held-out pairs against the number of labels, for
several ways to choose them.

    python benchmarks/label_selection.py --pool hh_helpful_train.jsonl.gz --test \
        hh_helpful_test.jsonl.gz --output runs/label-selection

Every method starts from the same 100 random pairs; from then on it doubles them out of 2,000 random
pairs of the pool that it has not used, by ``labeling.selection`` as ``prefloop label next`` does,
and a reward ensemble is trained from scratch on all that it has (label and reward stages, one epoch
but at least 25 steps). The pool's own votes are what the labelers would say. All members' mean
score is measured on the test pairs. Finished trainings lie in the store of the output folder: the
same command goes on after a kill or a time limit, and ``results.json`` holds what is done so far. A
small model leaves most of a GPU idle: run the seeds side by side, each with an --output of its own,
and put them together with ``--join a/results.json b/results.json c/results.json``. On two CPU
cores, to see it work:

    python benchmarks/label_selection.py --pool … --test … --model TINY --precision fp32 --sizes 8 \
        16 --members 2 --candidates 40 --test-limit 20
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from learning_curve import overall, plot, show, summary

from prefloop.artifacts.store import Artifact
from prefloop.base.sealed import write_json
from prefloop.config import BackboneConfig, DataConfig, LabelConfig, OptimConfig, RewardConfig
from prefloop.data.encode import Encoder
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import DataError
from prefloop.labeling.scoring import score_pool
from prefloop.labeling.selection import SCORED, choose
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.records import Comparison
from prefloop.runs.runtime import Runtime, environment

METHODS = ("disagreement", "margin", "random", "length")


def usable(path: Path, runtime: Runtime, limit: int | None = None) -> list[Comparison]:
    """The pairs of a file whose prompt fits into the model."""
    encoder = Encoder(runtime.backbone.chat, runtime.backbone.config.max_length)
    found = []
    for pair in load_comparisons(path).records:
        try:
            encoder.prompt(pair.id, pair.prompt)
        except DataError:
            continue
        found.append(pair)
    return found[:limit]


def train(runtime: Runtime, labeled: list[Comparison], options: argparse.Namespace) -> Artifact:
    """An ensemble on the labeled pairs, through the stages; taken from the store when it was
    trained before.
    """
    path = options.output / "labeled.jsonl"
    write_jsonl(path, labeled)
    comparisons = Label(LabelConfig(source="file"), DataConfig(comparisons=path)).run(runtime)
    config = RewardConfig(
        members=options.members,
        epochs=max(1.0, math.ceil(options.least_steps * options.batch_pairs / len(labeled))),
        batch_pairs=options.batch_pairs,
        holdout=0.0,  # every label is trained on; the test pairs measure
        head_learning_rate=options.learning_rate,
        optim=OptimConfig(
            learning_rate=options.learning_rate, warmup_steps=5, checkpoint_every=10_000
        ),
    )
    return RewardModel(config, from_sft=False).run(runtime, comparisons=comparisons)


def measure(reward: Reward, test: list[Comparison], max_length: int) -> dict[str, Any]:
    """Accuracy and log loss of the members' mean; ``right`` by test pair, for paired
    differences.
    """
    scores = score_pool(reward, test, max_length)
    margin_P = scores.margin_PK.mean(1)
    label_P = np.array([test[i].votes[0].choice == 0 for i in scores.positions])
    sign_P = np.where(label_P, 1.0, -1.0)
    right_P = np.where(margin_P == 0, 0.5, (margin_P * sign_P > 0).astype(float))
    loss = float(np.logaddexp(0, -margin_P * sign_P / scores.temperature).mean())
    return {"accuracy": float(right_P.mean()), "loss": loss, "right": right_P.tolist()}


def run_seed(
    runtime: Runtime, seed: int, pool: list[Comparison], test: list[Comparison], results: Results
) -> None:
    """All methods, size by size, so that a time limit cuts every method at the same place; the
    first size is the same for all.
    """
    options = results.options
    runtime.seed = seed
    start = random.Random(f"{seed}:start").sample(range(len(pool)), options.sizes[0])
    have = {method: start for method in options.methods}
    for size, following in zip(options.sizes, [*options.sizes[1:], None], strict=True):
        alike = (
            [options.methods]
            if size == options.sizes[0]
            else [[method] for method in options.methods]
        )
        for methods in alike:
            if results.late():
                return
            started = time.monotonic()
            artifact = train(runtime, [pool[i] for i in have[methods[0]]], options)
            seconds = round(time.monotonic() - started, 1)
            reward = Reward.load(runtime.backbone, artifact.path)
            try:
                found = measure(reward, test, runtime.backbone.config.max_length)
                for method in methods:
                    results.add(seed=seed, method=method, labels=size, seconds=seconds, **found)
                    if following:
                        more = extend(
                            reward, pool, have[method], method, following - size, options, seed
                        )
                        have[method] = [*have[method], *more]
            finally:
                reward.drop()


def extend(
    reward: Reward,
    pool: list[Comparison],
    have: list[int],
    method: str,
    count: int,
    options: argparse.Namespace,
    seed: int,
) -> list[int]:
    """The next pairs of the pool by a method, out of a random part of what is not used yet."""
    left = sorted(set(range(len(pool))) - set(have))
    # The same part for every method at a size, but for the pairs that each has used.
    draw = random.Random(f"{seed}:part:{len(have)}")
    keys = [draw.random() for _ in pool]
    part = sorted(left, key=lambda i: keys[i])[: options.candidates]
    pairs = [dataclasses.replace(pool[i], votes=[]) for i in part]
    if method not in SCORED:
        return [part[i] for i in choose(pairs, count, method, seed=seed)[0]]
    scores = score_pool(reward, pairs, reward.backbone.config.max_length)
    picked, _ = choose(
        [pairs[i] for i in scores.positions],
        count,
        method,
        margin_PK=scores.margin_PK,
        feature_PH=scores.feature_PH if options.diversity else None,
        temperature=scores.temperature,
        seed=seed,
    )
    return [part[scores.positions[i]] for i in picked]


class Results:
    """Rows as they come: printed, and kept in ``results.json``."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def late(self) -> bool:
        """Whether the time is up; what is done stays."""
        return (
            self.options.limit_s is not None
            and time.monotonic() - self.started > self.options.limit_s
        )

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        print(
            f"seed {row['seed']}  {row['method']:12}  {row['labels']:5} labels  accuracy"
            f" {row['accuracy']:.3f}  log loss {row['loss']:.3f}  {row['seconds']:5.1f} s of"
            f" training  ({time.monotonic() - self.started:.0f} s gone)",
            flush=True,
        )
        self.write()

    def write(self) -> dict[str, Any]:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()}
        settings |= {
            name: Path(settings[name]).name
            for name in ("pool", "test", "model", "output")
            if settings[name]
        }
        settings["join"] = [path.parent.name for path in self.options.join or []]
        found = {
            "settings": settings,
            "environment": environment(),
            "summary": summary(self.rows),
            "overall": overall(self.rows),
            "rows": self.rows,
        }
        write_json(self.options.output / "results.json", found)
        return found


def main(arguments: list[str] | None = None) -> None:
    """Run every seed, print rows as they come, then the table, ``results.json`` and
    ``curve.png``.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=Path, help="labeled pairs to choose from")
    parser.add_argument("--test", type=Path, help="labeled pairs to measure on")
    parser.add_argument(
        "--join",
        type=Path,
        nargs="+",
        help="results.json of runs with other seeds: their table and curve, nothing is trained",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/label-selection"))
    parser.add_argument(
        "--methods", nargs="+", default=["disagreement", "random", "length"], choices=METHODS
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument(
        "--candidates",
        type=int,
        default=2000,
        help="random part of the pool that a round chooses from",
    )
    parser.add_argument(
        "--no-diversity",
        dest="diversity",
        action="store_false",
        help="the highest values as they are",
    )
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--batch-pairs", type=int, default=16)
    parser.add_argument("--least-steps", type=int, default=25)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--precision", default="bf16", choices=["nf4", "bf16", "fp32"])
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--pack-tokens", type=int, default=16384)
    parser.add_argument("--limit-s", type=float, help="start no training after so many seconds")
    options = parser.parse_args(arguments)
    if not options.join and not (options.pool and options.test):
        parser.error("--pool and --test are needed, or --join")
    options.output.mkdir(parents=True, exist_ok=True)
    if options.join:
        results = Results(options)
        results.rows = [
            row for path in options.join for row in json.loads(path.read_text())["rows"]
        ]
        conclude(results)
        return
    config = BackboneConfig(
        model=options.model,
        precision=options.precision,
        chat_template="chatml",
        max_length=options.max_length,
        pack_tokens=options.pack_tokens,
    )
    runtime = Runtime(config, output=options.output)
    pool, test = usable(options.pool, runtime), usable(options.test, runtime, options.test_limit)
    print(
        f"{len(pool)} pairs in the pool, {len(test)} test pairs; {json.dumps(environment())}",
        flush=True,
    )
    results = Results(options)
    for seed in options.seeds:
        run_seed(runtime, seed, pool, test, results)
    conclude(results)


def conclude(results: Results) -> None:
    """The closing table, ``results.json`` and ``curve.png``."""
    written = results.write()
    found = written["summary"]
    show(found, written["overall"])
    if found:
        plot(found, results.options.output / "curve.png")


if __name__ == "__main__":
    main()
