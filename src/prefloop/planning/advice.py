"""From five answers to a configuration: the presets' values and settings that fit by the planner.

Each setting has its reason and source.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from prefloop.base.redact import short
from prefloop.config import LabelConfig, RewardConfig, RLHFConfig
from prefloop.config.presets import REGRET, Facts, Guide, guides
from prefloop.config.ranges import count_in
from prefloop.errors import ConfigError, among

if TYPE_CHECKING:
    from prefloop.planning.shapes import Shape

GIB = 2**30
KINDS = {
    "demonstrations": "prompts with good answers",
    "pairs": "preferred and rejected answers",
    "thumbs": "answers with thumbs up or down",
    "prompts": "prompts alone",
}
Latency = Literal["any", "low"]
Alignment = Literal["none", "pairs", "rollouts"]
LATENCIES = {
    "any": "an adapter beside the model is fine",
    "low": "the model must answer as fast as a plain one",
}
NEEDS = {
    "none": "answers like the demonstrations",
    "pairs": "prefers what people prefer, learnt from the data as it is",
    "rollouts": "learns from its own answers and a reward model",
}
MODELS = {
    "Qwen/Qwen2.5-7B-Instruct": "shape:7b",
    "Qwen/Qwen2.5-1.5B-Instruct": "shape:1.5b",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "shape:smollm2",
}
"""Model, from the largest to the smallest → the shape to plan it with."""
SMALLEST = [*MODELS][-1]
PLANNED = (
    "backbone.precision",
    "backbone.gradient_checkpointing",
    "backbone.pack_tokens",
    "generation.weights",
    "generation.max_num_seqs",
)
"""The settings that the planner decides."""
UNFIT = (
    "No model fits by `prefloop plan`, and this is the smallest: use a larger card, or lower"
    " backbone.max_length."
)
FEW_PAIRS = 2_000
"""With fewer pairs than this, one pass is short and more passes cost little; a rule of thumb."""
BATCHES, ENOUGH = (32, 16, 8, 4), 50
"""Pairs per step: the largest batch that makes at least ``ENOUGH`` steps; prefloop's own choice."""
ENSEMBLE = 2_000
"""The fewest rows that are enough for several reward models; a rule of thumb."""


@dataclasses.dataclass(frozen=True)
class Situation:
    """The answers to the questions of ``prefloop advise``."""

    kind: str
    rows: int
    memory: int
    """Bytes of the card; 0 without a card."""
    latency: Latency
    tasks: int
    alignment: Alignment
    preset: str = "chat"
    """The preset whose values to use."""

    @property
    def votes(self) -> float:
        """Rows as the algorithms count them: two thumbs are one."""
        return self.rows / 2 if self.kind == "thumbs" else self.rows


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting with its reason."""

    field: str
    value: Any
    why: str


Tree = dict[str, "Choice | Tree"]
"""Choices by the nested keys of a configuration file."""


def data_of(text: str) -> tuple[str, int]:
    """Parse 'pairs:6000' as kind and rows. Raises ``ConfigError`` for anything else."""
    match = re.fullmatch(r"([a-z]+):(\d[\d_,]*)", text.strip())
    if not match:
        raise ConfigError(
            f"--data: {short(text)} is not KIND:ROWS, such as pairs:6000; kinds are"
            f" {', '.join(KINDS)}"
        )
    kind, rows = match[1], count_in(match[2])
    if kind not in KINDS:
        raise ConfigError(f"--data: unknown kind '{kind}' ({among(kind, KINDS)})")
    if rows is None:
        raise ConfigError(f"--data: {short(text)} has no rows: give 1 or more")
    return kind, rows


def one_of(flag: str, answer: str, known: Collection[str]) -> str:
    """The answer, if it is one of ``known``. Raises ``ConfigError`` with the known ones
    otherwise.
    """
    if answer not in known:
        raise ConfigError(f"{flag}: unknown '{answer}' ({among(answer, known)})")
    return answer


def tasks_of(text: str) -> int:
    """Parse '3' as a number of tasks. Raises ``ConfigError`` for anything else."""
    if (tasks := count_in(text)) is None:
        raise ConfigError(f"--tasks: {short(text)} is no number of tasks: give 1 or more")
    return tasks


def place_of(memory: int) -> str:
    """The flag of ``prefloop plan`` for the same card, or for a CPU."""
    return f"--gpu {memory / GIB:g}GiB" if memory else "--card CPU"


def config_of(answers: Situation) -> str:
    """A configuration as YAML, with the reason and source of each choice in a comment above it."""
    size = f"{answers.memory / GIB:g} GiB of GPU memory" if answers.memory else "no GPU"
    head = [
        (
            f"Written by `prefloop advise` for {answers.rows:,} rows of {KINDS[answers.kind]},"
            f" {size}, {answers.tasks} task{'' if answers.tasks == 1 else 's'}; latency:"
            f" {LATENCIES[answers.latency]}; alignment: {NEEDS[answers.alignment]}. Numbers such as"
            " 2305.18290 are arXiv's."
        ),
        (
            "Next: put your files' paths in, then `prefloop plan` on this file with"
            f" {place_of(answers.memory)}, then `python pipelines/rlhf.py --config` with it."
        ),
    ]
    if answers.latency == "low":
        head.append(
            "For serving as fast as a plain model, merge what was trained: `prefloop export"
            " --merge`."
        )
    chosen = [Choice("run", "advised", ""), _algorithm(answers), *_fitting(answers)]
    return (
        "\n".join(
            [*(line for text in head for line in _comment(text, "")), *_lines(_tree(chosen), "")]
        )
        + "\n"
    )


def _algorithm(answers: Situation) -> Choice:
    name, why = {
        "rollouts": (
            "rloo",
            (
                "Learning from its own answers needs a policy gradient; leave-one-out needs no"
                " critic (2402.14740)."
            ),
        ),
        "none": (
            "sft",
            (
                "Nothing beyond the demonstrations: SFT, measured on those that it holds out; no"
                " win rate, which takes a judge (add bench.tasks)."
            ),
        ),
        "pairs": ("dpo", "Pairs train the policy directly, without sampling (DPO, 2305.18290)."),
    }[answers.alignment]
    if answers.alignment == "pairs" and answers.kind == "thumbs":
        name, why = "kto", "Thumbs need no pairs under KTO (2402.01306)."
    return Choice("algo", name, why)


def _fitting(answers: Situation) -> list[Choice]:
    """The largest model that fits by the planner, with its settings."""
    if not answers.memory:
        chosen = _settings(answers, SMALLEST)
        why = (
            "Two CPU cores train 0.135B parameters at about 250 tokens a second"
            " (docs/benchmarks.md); larger ones take days."
        )
        return [
            Choice("backbone.model", SMALLEST, why),
            Choice("backbone.pack_tokens", 512, ""),
            *chosen,
        ]
    for model, shape in MODELS.items():
        chosen = _settings(answers, model)
        fits = _planned(_frozen(chosen, _algorithm(answers).value), shape, answers.memory)
        if fits is not None:
            at_most, values = fits
            why = (
                f"The largest of {', '.join(MODELS)} that `prefloop plan` makes fit: at most"
                f" {at_most / GIB:.1f} GiB."
            )
            planned = [
                Choice(name, value, "" if i else "What follows is the planner's (docs/planner.md).")
                for i, (name, value) in enumerate(values)
            ]
            return [Choice("backbone.model", model, why), *planned, *chosen]
    return [Choice("backbone.model", SMALLEST, UNFIT), *_settings(answers, SMALLEST)]


def _frozen(chosen: list[Choice], algo: str) -> tuple[tuple[str, Any], ...]:
    return tuple((c.field, c.value) for c in (*chosen, Choice("algo", algo, "")))


@functools.lru_cache(maxsize=256)
def _planned(
    fields: tuple[tuple[str, Any], ...], shape: str, memory: int
) -> tuple[int, list[tuple[str, Any]]] | None:
    """The highest peak and the values of ``PLANNED`` that fit every card with this nominal memory.

    ``None`` if nothing fits.
    """
    from prefloop.config.load import validated
    from prefloop.planning.memory import SOLD
    from prefloop.planning.propose import propose, value_of

    tree = _values(_tree([Choice(field, value, "") for field, value in fields]))
    tree["backbone"] |= {"model": shape, "pack_tokens": 8192}
    config: RLHFConfig = validated(tree, "advice")
    proposal = propose(config, _shape(shape), int(SOLD * memory))
    if proposal is None:
        return None
    return proposal.at_most, [(name, value_of(proposal.config, name)) for name in PLANNED]


@functools.cache
def _shape(name: str) -> Shape:
    from prefloop.planning.shapes import shape_of

    return shape_of(name, Path("."))


def _settings(answers: Situation, model: str) -> list[Choice]:
    """All settings except the model and those that the planner decides."""
    rows = None if answers.kind == "prompts" else answers.rows
    method, rank, why = _method(answers)
    values = guides(answers.preset, Facts(method, rank, model, rows))
    aligned, labeled = answers.alignment != "none", answers.kind in ("pairs", "thumbs")
    stages = {"none": (), "pairs": ("reward", "preference"), "rollouts": ("reward", "ppo")}[
        answers.alignment
    ]
    used = ("backbone", "sft", *stages)
    values += _passes(answers, {g.field: g.value for g in values})
    out = [
        Choice(
            "backbone.max_length", 1024, "Longest prompt with its answer; memory grows with it."
        ),
        Choice("backbone.adapter.method", method, why),
        *(Choice(g.field, g.value, g.source) for g in values if g.field.split(".")[0] in used),
        Choice(
            "generation.max_new_tokens",
            256 if answers.memory else 60,
            "Longest answer: look at your own.",
        ),
        Choice(
            "data.demonstrations",
            "data/demonstrations.jsonl" if answers.kind == "prompts" else "data/train.jsonl",
            "Your files; the layout is detected (docs/data.md)."
            + (" SFT needs good answers: give some." if answers.kind == "prompts" else ""),
        ),
    ]
    if not aligned:
        return out
    out += [
        Choice("data.prompts", "data/train.jsonl", ""),
        Choice("data.eval_prompts", "data/eval.jsonl", ""),
    ]
    if labeled:
        out.append(Choice("data.comparisons", "data/train.jsonl", ""))
        out.append(Choice("label.source", "file", "The votes stand in your file."))
    else:
        out.append(
            Choice(
                "label.source",
                "argilla",
                "Nobody has voted yet: people do, through Argilla (docs/labeling.md).",
            )
        )
    if answers.alignment == "rollouts":
        out += _ensemble(answers)
        steps, prompts, why = (
            (120, 64, "As in examples/hh_ppo.yaml, measured in docs/benchmarks.md.")
            if answers.memory
            else (30, 16, "Two cores take minutes a step; fewer than this show little.")
        )
        out += [Choice("ppo.steps", steps, why), Choice("ppo.prompts_per_step", prompts, "")]
        out.append(
            Choice(
                "ppo.samples_per_prompt",
                4,
                "Each answer's baseline is the mean of the others (2402.14740, with 4 in its main"
                " results).",
            )
        )
    return out


def _passes(answers: Situation, values: dict[str, Any]) -> list[Guide]:
    """More passes and smaller batches, if there are few votes, for ``ENOUGH`` steps."""
    pairs = answers.votes * (LabelConfig().pairs_per_prompt if answers.kind == "prompts" else 1)
    out = []
    epochs = {stage: values[f"{stage}.epochs"] for stage in ("reward", "preference")}
    if pairs < FEW_PAIRS:
        epochs["preference"] = 3.0
        out.append(
            Guide(
                "preference.epochs",
                3.0,
                "Zephyr (2310.16944, section 5): three passes of DPO did better than one.",
            )
        )
    for stage, held_out in (("reward", RewardConfig().holdout), ("preference", 0.0)):
        seen = pairs * epochs[stage] * (1 - held_out)
        fitting = [size for size in BATCHES if seen / size >= ENOUGH]
        size = fitting[0] if fitting else BATCHES[-1]
        if size < BATCHES[0]:
            why = (
                f"{BATCHES[0]} pairs a step would make {math.ceil(seen / BATCHES[0])} steps of so"
                f" few; {size} make {math.ceil(seen / size)}."
            )
            out.append(Guide(f"{stage}.batch_pairs", size, why))
    return out


def _ensemble(answers: Situation) -> list[Choice]:
    if answers.rows < ENSEMBLE:
        return []
    return [
        Choice(
            "reward.members",
            3,
            "Where members differ nobody knows, and the policy should not go there (2310.02743,"
            " with five members); three as in docs/benchmarks.md.",
        ),
        Choice("ppo.uncertainty_penalty", 0.5, "As in examples/hh_ppo.yaml."),
    ]


def _method(answers: Situation) -> tuple[str, int | None, str]:
    """Method, rank if it is not the preset's, and the reason."""
    rank = None
    why = (
        "The plain method, which vLLM takes over and which runs fused where no dropout keeps it"
        " from that (docs/adapters.md)."
    )
    chosen = {g.field: g for g in guides(answers.preset)}["backbone.adapter.r"].value
    if answers.tasks > 1:
        more = {g.field: g for g in guides("reasoning")}["backbone.adapter.r"].value
        if more > chosen:
            rank = chosen = more
            why = (
                f"An adapter that holds less than its data falls behind ({REGRET}): for several"
                f" tasks the rank of preset reasoning, {more}."
            )
    if chosen > 32:
        why = (
            why if rank else ""
        ) + " At high ranks alpha / sqrt(r) keeps the size of gradients (rsLoRA, 2312.03732)."
        return "rslora", rank, why.strip()
    return "lora", rank, why


def _tree(chosen: list[Choice]) -> Tree:
    """Choices by the nested keys of a configuration file; later choices win."""
    tree: Tree = {}
    for choice in chosen:
        *parents, name = choice.field.split(".")
        branch = tree
        for parent in parents:
            child = branch.setdefault(parent, {})
            assert isinstance(child, dict)
            branch = child
        branch[name] = choice
    return tree


def _values(tree: Tree) -> dict[str, Any]:
    return {k: _values(v) if isinstance(v, dict) else v.value for k, v in tree.items()}


def _lines(tree: Tree, indent: str) -> list[str]:
    out = []
    for name, branch in tree.items():
        if isinstance(branch, dict):
            out += [f"{indent}{name}:", *_lines(branch, indent + "  ")]
        else:
            value = yaml.safe_dump(branch.value).removesuffix("...\n").strip()
            out += [*_comment(branch.why, indent), f"{indent}{name}: {value}"]
    return out


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, 110)]
