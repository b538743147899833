"""The planner's peaks against measured ones: random weights, two steps of each configuration in a
process of its own.

    python benchmarks/planner.py                                  # all, on one H100
    # goes on: cases that the file holds are not run again
    python benchmarks/planner.py --only 7b --output planner.json
    # does each run in no more than what the planner calls 'at most'?
    python benchmarks/planner.py --capped
    # a tiny shape anywhere; without a GPU memory is not measured
    python benchmarks/planner.py --tiny

Packs are filled with equal documents, so that they are as large as the planner takes them to be.
Each configuration goes through its stage's own step functions, the first step's audit included.
PPO's responses are random: vLLM takes what it is told to. The peak is torch's allocated memory
after loading; 'reserved' is what torch kept from the system, of which it gives back what it does
not need when there is no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shapes import SHAPES, make_model, make_quantized

GIB = 2**30
PROMPT, RESPONSE = 150, 110


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration."""

    shape: str
    stage: str
    precision: str
    checkpointing: str
    pack_tokens: int

    @property
    def name(self) -> str:
        return "-".join(map(str, dataclasses.astuple(self)))

    @property
    def quantized(self) -> bool:
        """Whether the model is made and stored in 4 bits: 7B as 5 GB, in memory, once for all of
        its cases.
        """
        return self.shape == "7b" and self.precision == "nf4"

    def folder(self, models: Path) -> Path:
        return models / f"prefloop-{self.shape}{'-nf4' if self.quantized else ''}"


CASES = (
    Case("smollm2", "sft", "nf4", "none", 4096),
    Case("smollm2", "dpo", "nf4", "none", 16384),
    Case("smollm2", "reward", "bf16", "none", 16384),
    Case("smollm2", "ppo", "bf16", "none", 8192),
    Case("1.5b", "sft", "bf16", "none", 2048),
    Case("1.5b", "dpo", "nf4", "none", 4096),
    Case("1.5b", "reward", "nf4", "block", 8192),
    Case("1.5b", "ppo", "bf16", "block", 8192),
    Case("7b", "dpo", "nf4", "block", 4096),
    Case("7b", "reward", "nf4", "none", 2048),
    Case("7b", "ppo", "nf4", "block", 4096),
    Case("7b", "sft", "nf4", "block", 2048),
    Case("7b", "ppo", "nf4", "none", 2048),
    Case("7b", "dpo", "bf16", "none", 2048),
)
"""The quick ones first: a call that is cut short has the most of them. 15 GB are written for the
last alone.
"""
TINY = tuple(
    Case("tiny", stage, "fp32", check, 2048)
    for stage in ("sft", "dpo", "reward", "ppo")
    for check in ("none", "block")
)


def settings(case: Case, model: str) -> Any:
    """The run's configuration, with which the stage's steps run and the planner plans."""
    from prefloop import config as c

    backbone = c.BackboneConfig(
        model=model,
        precision=case.precision,
        gradient_checkpointing=case.checkpointing,
        pack_tokens=case.pack_tokens,
        max_length=1024,
        chat_template="chatml",
        adapter=c.AdapterConfig(r=16, alpha=32),
    )
    return c.RLHFConfig(
        algo={"sft": "dpo"}.get(case.stage, case.stage),
        rollout="server",
        backbone=backbone,
        label=c.LabelConfig(source="file"),
        data=c.DataConfig(demonstrations=Path("demonstrations")),
        generation=c.GenerationConfig(temperature=1.0, max_new_tokens=RESPONSE),
        ppo=c.PPOConfig(samples_per_prompt=1, minibatches=1),
    )


def predicted(case: Case) -> tuple[int, str, int]:
    """The planner's figure for what torch allocates, the moment that it comes from, and the figure
    with the planner's margin.
    """
    from prefloop.planning.shapes import shape_of
    from prefloop.planning.stages import Planner

    config = settings(case, f"shape:{case.shape}")
    stages = Planner(config, shape_of(config.backbone.model, Path("unused"))).stages()
    stage = next(s for s in stages if s.name == case.stage)
    return stage.trainer, stage.moment, stage.at_most - (stage.peak - stage.trainer)


def documents(case: Case, count: int, responses: int) -> list[Any]:
    """Documents of equal length."""
    from prefloop.data.packing import Document

    draw, vocabulary = random.Random(0), SHAPES[case.shape]["vocab_size"]
    ids = lambda n: [draw.randrange(10, vocabulary) for _ in range(n)]  # noqa: E731
    keys = [range(responses * i, responses * (i + 1)) for i in range(count)]
    return [Document(ids(PROMPT), [ids(RESPONSE) for _ in of_one], of_one) for of_one in keys]


def sft(case: Case, backbone: Any, work: Any) -> None:
    """Two steps of the stage on one full pack each."""
    from prefloop.pipeline.stages.sft import ROLE, SFT
    from prefloop.training.audit import Audit
    from prefloop.training.held_out import SFTRow

    backbone.add_role(ROLE)
    count = case.pack_tokens // (PROMPT + RESPONSE)
    rows = [
        SFTRow(d.tokens(0), tuple(d.prompt_ids), str(i))
        for i, d in enumerate(documents(case, 2 * count, 1))
    ]
    config = dataclasses.replace(settings(case, "").sft, batch_size=count)
    SFT(config)._train(work, Audit("sft"), rows, [])


def pairs(case: Case, backbone: Any, work: Any) -> None:
    """Two steps of DPO or reward training on one full pack each."""
    from prefloop.config import OptimConfig
    from prefloop.data.encode import PreferenceGroup
    from prefloop.data.packing import packs
    from prefloop.models.forward import hidden_N_H
    from prefloop.models.heads import ScalarHead
    from prefloop.objectives.reward import bradley_terry
    from prefloop.training.dpo import PAIR_LOSSES
    from prefloop.training.loop import Loop
    from prefloop.training.pair_batch import pairs_of
    from prefloop.training.policy import POLICY, REFERENCE, policy_B, reference_B

    backbone.add_role(POLICY)
    reward = case.stage == "reward"
    head = ScalarHead(backbone.hidden_size, "normal").to(backbone.device)
    if not reward:
        backbone.add_role(REFERENCE, frozen=True)
    groups = [
        PreferenceGroup(d, [(0, 1, 1.0, 1.0)])
        for d in documents(case, case.pack_tokens // (PROMPT + 2 * RESPONSE), 2)
    ]
    by_key = {key: group for group in groups for key in group.document.keys}
    parameters = {f"adapter/{n}": p for n, p in backbone.named_parameters(POLICY).items()}
    parameters |= {f"head/{n}": p for n, p in head.named_parameters()} if reward else {}
    loop = Loop(parameters, OptimConfig(learning_rate=1e-5), 2, work.checkpoints)

    def loss_of(pack: Any) -> Any:
        if reward:
            with backbone.role(POLICY, train=True, dropout=True):
                score_B = head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))
            return bradley_terry(pairs_of(pack, by_key, score_B, 0.0).margin).sum()
        reference = reference_B(backbone, pack, 1.0)
        found = pairs_of(pack, by_key, policy_B(backbone, pack, 1.0), reference)
        return PAIR_LOSSES["dpo"].loss(found, settings(case, "").preference).sum()

    check = audited(backbone, parameters)
    for step in range(2):
        loop.update(packs([g.document for g in groups], case.pack_tokens), loss_of, len(groups))
        if step == 0:
            check()


def ppo(case: Case, backbone: Any, work: Any) -> None:
    """Two rollouts of random responses, scored and trained on."""
    from prefloop.config import OptimConfig
    from prefloop.models.forward import choose
    from prefloop.models.heads import ScalarHead
    from prefloop.models.reward_model import Reward, role_of
    from prefloop.records import Message, Prompt
    from prefloop.rollouts.engine import Rollout
    from prefloop.training.audit import Audit
    from prefloop.training.loop import Loop
    from prefloop.training.policy import POLICY, REFERENCE, policy_parameters
    from prefloop.training.ppo import PPOTrainer, kl_penalty
    from prefloop.training.rewards import Rewards
    from prefloop.training.scoring import Critic, Scorer

    backbone.add_role(POLICY)
    backbone.add_role(REFERENCE, frozen=True)
    backbone.add_role(role_of(0), frozen=True)
    reward = Reward(backbone, [ScalarHead(backbone.hidden_size, "normal").to(backbone.device)])
    critic = Critic(backbone, "shared")
    whole = documents(case, 2 * case.pack_tokens // (PROMPT + RESPONSE), 1)
    batch = [Prompt(id=str(i), prompt=[Message("user", "w9")]) for i in range(len(whole))]
    config = dataclasses.replace(settings(case, "").ppo, prompts_per_step=len(whole))
    loop = Loop(
        policy_parameters(backbone) | critic.parameters,
        OptimConfig(learning_rate=1e-5),
        2,
        work.checkpoints,
    )
    scorer = Scorer(backbone, config, 1.0, reward, critic, Rewards({}))
    trainer, kl = (
        PPOTrainer(scorer, "gae", loop, Audit("ppo"), seed=0),
        kl_penalty(config.kl, "gae"),
    )
    for step in range(2):
        with backbone.role(None):  # the kernel is found before packs are twice as large
            backbone.kernel = backbone.kernel or choose(backbone)
        rollouts = [
            Rollout(i, d.responses_ids[0], [-1.0] * RESPONSE, True) for i, d in enumerate(whole)
        ]
        scored = scorer.score(batch, [d.prompt_ids for d in whole], rollouts)
        trainer.update(scored, trainer.estimate(scored, kl), kl, step)


def audited(backbone: Any, named: dict[str, Any]) -> Callable[[], None]:
    """What the stages hold and compute around their first step."""
    before = {name: p.detach().clone() for name, p in named.items()}
    frozen = backbone.frozen_digest()

    def check() -> None:
        if backbone.frozen_digest() != frozen or not before:
            raise SystemExit("the frozen weights changed")

    return check


def measure(case: Case, folder: Path, capped: bool = False) -> dict[str, Any]:
    """Load, run two steps, report; memory is None without a GPU. ``capped``: torch gets no more
    than the planner's figure with its margin.
    """
    import torch

    from prefloop.models.backbone import Backbone

    config = settings(case, str(folder))
    gpu = torch.cuda.is_available()
    if not (folder / "config.json").is_file():
        (make_quantized if case.quantized else make_model)(folder, case.shape)
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if gpu and capped:
        torch.cuda.set_per_process_memory_fraction(
            predicted(case)[2] / torch.cuda.mem_get_info()[1]
        )
    started = time.monotonic()
    backbone = Backbone.load(config.backbone, folder)
    loaded = torch.cuda.max_memory_allocated() if gpu else None
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runtime = SimpleNamespace(backbone=backbone, generation=config.generation, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        work = SimpleNamespace(
            runtime=runtime,
            folder=Path(scratch),
            checkpoints=Path(scratch),
            emit=lambda *_, **__: None,
        )
        {"sft": sft, "dpo": pairs, "reward": pairs, "ppo": ppo}[case.stage](case, backbone, work)
    return {
        "allocated": torch.cuda.max_memory_allocated() if gpu else None,
        "reserved": torch.cuda.max_memory_reserved() if gpu else None,
        "loading": loaded,
        "layers_fused": bool(backbone.layers),
        "kernel": backbone.kernel,
        "seconds": time.monotonic() - started,
    }


def row(found: dict[str, Any]) -> str:
    """A line of the table in docs/planner.md."""
    peak, measured = found["predicted"], found.get("allocated")
    cells = [found[name] for name in ("shape", "stage", "precision", "checkpointing")]
    cells += [f"{found['pack_tokens']:,}", f"{peak / GIB:.2f}"]
    if measured is not None:
        cells += [
            f"{measured / GIB:.2f}",
            f"{100 * (peak / measured - 1):+.1f} %",
            f"{found['reserved'] / GIB:.2f}",
        ]
    return "| " + " | ".join([*cells, "-", "-", "-"][:9]) + " |"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run every case in a process of its own; print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny shape, for machines without a GPU"
    )
    parser.add_argument(
        "--capped", action="store_true", help="torch gets no more than the planner's 'at most'"
    )
    models = next(p for p in (Path("/dev/shm"), Path(tempfile.gettempdir())) if p.is_dir())
    parser.add_argument("--models", type=Path, default=models, help="folder for the random models")
    parser.add_argument(
        "--output", type=Path, help="JSON file to write after each case, and to go on from"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cases = [case for case in (TINY if options.tiny else CASES) if options.only in case.name]
    if options.one:
        case = next(case for case in cases if case.name == options.one)
        print(
            "RESULT " + json.dumps(measure(case, case.folder(options.models), options.capped)),
            flush=True,
        )
        return []
    import torch

    versions = {
        p: importlib.metadata.version(p)
        for p in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    }
    print(
        torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", versions, flush=True
    )
    print(
        "| shape | stage | precision | recomputed | pack | planned GiB | measured | error |"
        " reserved |\n" + "|---" * 9 + "|",
        flush=True,
    )
    results: list[dict[str, Any]] = []
    if options.output and options.output.is_file():
        results = [
            r for r in json.loads(options.output.read_text())["results"] if "failed" not in r
        ]
    done = {Case(**{f.name: r[f.name] for f in dataclasses.fields(Case)}).name for r in results}
    for found in results:
        print(row(found), flush=True)
    for case in (case for case in cases if case.name not in done):
        peak, moment, most = predicted(case)
        call = [sys.executable, __file__, "--models", str(options.models), "--one", case.name]
        call += [f"--{flag}" for flag in ("tiny", "capped") if getattr(options, flag)]
        child = subprocess.run(call, capture_output=True, text=True)
        line = next((x for x in child.stdout.splitlines() if x.startswith("RESULT ")), None)
        found = (
            json.loads(line.removeprefix("RESULT ")) if line else {"failed": child.stderr[-2000:]}
        )
        results.append(
            {
                **dataclasses.asdict(case),
                "predicted": peak,
                "moment": moment,
                "at_most": most,
                **found,
            }
        )
        print(
            row(results[-1]) if line else f"{case.name} failed:\n{child.stderr[-2000:]}", flush=True
        )
        if options.output:
            options.output.write_text(
                json.dumps({"versions": versions, "results": results}, indent=2) + "\n"
            )
    return results


if __name__ == "__main__":
    main()
