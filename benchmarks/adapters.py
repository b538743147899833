"""Every adapter method on the same SFT and DPO data: held-out loss, reward accuracy, trained
parameters, seconds, peak memory.

    # all methods that have no result yet
    python benchmarks/adapters.py --output runs/adapters
    # some, none started after 400 s
    python benchmarks/adapters.py --methods lora dora --limit-s 400 --lanes 2
    # several calls as one table
    python benchmarks/adapters.py --join benchmarks/results/adapters.json runs/b --output \
        runs/adapters
    # random weights, two steps, anywhere
    python benchmarks/adapters.py --tiny

Settings are those of ``examples/adapters.yaml``: rank, alpha and the learning rate of each method
from its preset. SFT reads the chosen answers of one slice of the training pairs, DPO the next
slice. The preset's DPO rates are for thousands of steps; here they are multiplied by
``--dpo-times``, the same for all methods. Each method runs in a process of its own and leaves
``<output>/<method>.json``, so a killed call goes on where it was. With ``--lanes 2`` the next one
starts up beside the one that trains: from its first look at data on a method has the machine to
itself, by a lock. MoLE's experts are two LoRA adapters, each of one half of the SFT slice.

Loss: mean negative log-likelihood of the chosen answers of the test pairs, nats a token, after SFT.
Reward accuracy: share of test pairs whose chosen answer has the larger implicit DPO reward
log(policy / SFT model). Seconds: steps of SFT and DPO alone, and both stages whole (reading,
checks, starting from data, saving). Peak: torch's allocated memory, backbone included.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adapters_data import CONFIG, make_tiny, model_folder, write_slices
from adapters_table import write_tables

from prefloop.config import RLHFConfig
from prefloop.config.adapters import CARDS

BASE = "none"
"""The bare model, beside the methods."""


def settings(method: str, options: argparse.Namespace, experts: Sequence[str] = ()) -> RLHFConfig:
    """The configuration of one method's run on the slices in the output folder; ``experts`` are
    MoLE's.
    """
    from prefloop.config.load import parse

    data = options.output / "data"
    changes = [f"--{name}={value}" for name, value in options.set]
    changes += [f"--backbone.model={model_folder(options)}"]
    changes += [f"--sft.batch-size={options.batch}", f"--preference.batch-pairs={options.batch}"]
    flags = [
        "--data.demonstrations",
        str(data / "sft.jsonl"),
        "--data.comparisons",
        str(data / "dpo.jsonl"),
    ]
    flags += ["--data.limit", "None", "--backbone.adapter.method", method, *changes]
    if experts:
        flags += ["--backbone.adapter.options", "experts", json.dumps(experts)]
    config = parse(["--config", str(CONFIG), *flags], "adapters.py", "")
    if not options.dpo_times:
        return config
    optim = config.preference.optim
    optim = dataclasses.replace(optim, learning_rate=optim.learning_rate * options.dpo_times)
    return dataclasses.replace(
        config, preference=dataclasses.replace(config.preference, optim=optim)
    )


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one method by SFT and DPO and measure it; everything it wrote is gone afterwards."""
    from prefloop.runs.runtime import Runtime

    store = options.output / "work" / method
    shutil.rmtree(store, ignore_errors=True)
    try:
        experts = []
        if method == "mole":
            with _alone(options):
                experts = _experts(options, store)
        config = settings("lora" if method == BASE else method, options, experts)
        runtime = Runtime(config.backbone, config.generation, config.rollout, config.seed, store)
        backbone = runtime.backbone
        with _alone(options):
            return _measured(method, config, runtime, backbone, options)
    finally:
        shutil.rmtree(store, ignore_errors=True)


@contextlib.contextmanager
def _alone(options: argparse.Namespace) -> Iterator[None]:
    """One process at a time; the lock is the system's and goes with the process that holds it."""
    with (options.output / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _measured(
    method: str, config: RLHFConfig, runtime: Any, backbone: Any, options: argparse.Namespace
) -> dict[str, Any]:
    from prefloop.pipeline.stages.label import Label
    from prefloop.pipeline.stages.preference import Preference
    from prefloop.pipeline.stages.sft import SFT

    if method == BASE:
        return {"method": method, "parameters": 0, "loss": held_out(backbone, None, options)}
    peaks = _Peaks()
    sft = SFT(config.sft, config.data).run(runtime)
    peaks.take("sft")
    comparisons = Label(config.label, config.data).run(runtime)
    dpo = Preference("dpo", config.preference).run(runtime, sft=sft, comparisons=comparisons)
    peaks.take("dpo")
    backbone.add_role("policy", start=dpo.path)
    backbone.add_role("reference", start=sft.path)
    return {
        "method": method,
        "parameters": backbone.method.count("policy"),
        "loss": held_out(backbone, "reference", options),
        "accuracy": reward_accuracy(backbone, config.generation.temperature, options),
        "steps_s": steps_s(sft.path) + steps_s(dpo.path),
        "stages_s": sft.seconds + dpo.seconds,
        "peak_bytes": peaks.found,
        "steps": [sft.metrics["steps"], dpo.metrics["steps"]],
        "rates": [config.sft.optim.learning_rate, config.preference.optim.learning_rate],
        "train_loss": [sft.metrics["loss_first"], sft.metrics["loss_last"]],
    }


def _experts(options: argparse.Namespace, store: Path) -> list[str]:
    """MoLE's experts: LoRA on each half of the SFT slice."""
    from prefloop.pipeline.stages.sft import SFT
    from prefloop.runs.runtime import Runtime

    experts = []
    plain = settings("lora", options)
    runtime = Runtime(
        plain.backbone, plain.generation, plain.rollout, plain.seed, store / "experts"
    )
    for half in range(2):
        data = dataclasses.replace(
            plain.data, demonstrations=options.output / "data" / f"sft-{half}.jsonl"
        )
        experts.append(str(SFT(plain.sft, data).run(runtime).path))
    runtime.release()
    return experts


class _Peaks:
    """Peak of allocated GPU memory by stage; nothing without a GPU."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._reset()

    def _reset(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def take(self, stage: str) -> None:
        import torch

        if torch.cuda.is_available():
            self.found[stage] = torch.cuda.max_memory_allocated()
        self._reset()


def steps_s(artifact: Path) -> float:
    """Seconds of all steps: from the first logged one to the last, and one mean step for the
    first.
    """
    import datetime

    events = [
        json.loads(line)
        for line in (artifact / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    times = [
        datetime.datetime.fromisoformat(e["at"]).timestamp() for e in events if e["event"] == "step"
    ]
    return (times[-1] - times[0]) * len(times) / max(1, len(times) - 1)


def held_out(backbone: Any, role: str | None, options: argparse.Namespace) -> float:
    """Mean negative log-likelihood of the test pairs' chosen answers, nats a token."""
    from prefloop.training.held_out import mean_loss

    documents = [
        dataclasses.replace(d, responses_ids=d.responses_ids[:1], keys=d.keys[:1])
        for d in _tests(backbone, options)
    ]
    return mean_loss(backbone, role, documents)


def _tests(backbone: Any, options: argparse.Namespace) -> list[Any]:
    """A document for each test pair: the chosen response first, keys 2i and 2i + 1."""
    from prefloop.data.encode import Encoder
    from prefloop.data.packing import document_of
    from prefloop.data.sources import load_comparisons

    encoder = Encoder(backbone.chat, backbone.config.max_length)
    documents = []
    for i, row in enumerate(load_comparisons(options.output / "data" / "test.jsonl").records):
        prompt_ids = encoder.prompt(row.id, row.prompt)
        responses = row.responses[:: -1 if row.votes[0].choice == 1 else 1]
        tokens = [
            encoder.response(row.id, row.prompt, response, len(prompt_ids))
            for response in responses
        ]
        documents.append(document_of(prompt_ids, tokens, 2 * i))
    return documents


def reward_accuracy(backbone: Any, temperature: float, options: argparse.Namespace) -> list[float]:
    """Share of test pairs whose chosen response has the larger implicit reward, with its 95 %
    interval over pairs; a tie is one half.
    """
    from prefloop.data.packing import packs
    from prefloop.models.forward import sum_by_branch_B
    from prefloop.stats.intervals import clustered_share
    from prefloop.training.policy import logps_R

    reward: dict[int, float] = {}
    for pack in packs(_tests(backbone, options), backbone.scoring_tokens):
        there = pack.to(backbone.device)
        policy_R, reference_R = (
            logps_R(backbone, there, role, temperature) for role in ("policy", "reference")
        )
        reward |= zip(
            there.keys, sum_by_branch_B(policy_R - reference_R, there).tolist(), strict=True
        )
    margins = [reward[key] - reward[key + 1] for key in sorted(reward)[::2]]
    found = clustered_share(
        {str(i): [(margin > 0) + 0.5 * (margin == 0)] for i, margin in enumerate(margins)}
    )
    return [found.mean, found.low, found.high]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/adapters"),
        help="folder for results, table and plot",
    )
    parser.add_argument(
        "--methods", nargs="+", default=[BASE, *CARDS], choices=[BASE, *CARDS], metavar="METHOD"
    )
    parser.add_argument(
        "--lanes", type=int, default=1, help="processes side by side, of which one trains"
    )
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start no method after so many seconds"
    )
    parser.add_argument(
        "--join",
        nargs="+",
        type=Path,
        default=[],
        help="folders with results, or a results.json, to take over; nothing is run",
    )
    parser.add_argument("--steps", type=int, default=60, help="of SFT and of DPO")
    parser.add_argument("--batch", type=int, default=16, help="demonstrations and pairs a step")
    parser.add_argument("--test-pairs", type=int, default=500)
    parser.add_argument(
        "--dpo-times", type=float, default=10.0, help="the preset's DPO rate times this"
    )
    parser.add_argument(
        "--train",
        type=Path,
        help="pairs to train on; default: those of the example's configuration",
    )
    parser.add_argument("--test", type=Path, help="pairs to test on")
    parser.add_argument("--model", help="another backbone")
    parser.add_argument("--tiny", action="store_true", help="random weights, made rows, two steps")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.set = []
    if options.tiny:
        options.steps, options.batch, options.test_pairs = 2, 2, 4
        options.model = str(options.output / "models" / "tiny")
        options.set = [
            ("backbone.precision", "fp32"),
            ("backbone.adapter.r", "4"),
            ("backbone.max-length", "128"),
        ]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, one process a method, then write the table and the plot of all results
    there are.
    """
    options = parsed(arguments)
    if options.one:
        print("RESULT " + json.dumps(measure(options.one, options)), flush=True)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for place in options.join:
        for method, found in results_of(place).items():
            (options.output / f"{method}.json").write_text(
                json.dumps(found, indent=2) + "\n", encoding="utf-8"
            )
    if not options.join:
        if options.tiny and not Path(options.model).is_dir():
            make_tiny(Path(options.model))
        write_slices(options)
        started = time.monotonic()
        given = list(sys.argv[1:] if arguments is None else arguments)

        def run(method: str) -> None:
            if time.monotonic() - started < options.limit_s:
                run_one(method, options, given)

        with ThreadPoolExecutor(options.lanes) as lanes:
            list(lanes.map(run, options.methods))
    write_tables(options.output, [BASE, *CARDS])


def results_of(place: Path) -> dict[str, Any]:
    """Results by method: of a folder with a file for each, or of the ``results.json`` of an earlier
    table.
    """
    paths = (
        [place]
        if place.is_file()
        else [p for p in place.glob("*.json") if p.stem in (BASE, *CARDS)]
    )
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    return read[place.stem] if place.is_file() else read


def run_one(method: str, options: argparse.Namespace, arguments: list[str]) -> None:
    """One method in a process of its own, unless its result is there."""
    place = options.output / f"{method}.json"
    if place.is_file() and "failed" not in json.loads(place.read_text(encoding="utf-8")):
        return
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--one", method], capture_output=True, text=True
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    found = (
        json.loads(line.removeprefix("RESULT "))
        if line
        else {"method": method, "failed": done.stderr[-2000:]}
    )
    place.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        f"{method}: {'done' if line else 'failed'} in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    if not line:
        print(done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main()
