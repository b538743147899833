"""The tables of a model card: what an artifact was made from and with, what was measured, how it
fared against SFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import EvalResult

from prefloop.artifacts.adapter_config import described_shape
from prefloop.artifacts.manifest import Manifest
from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import (
    BASELINE,
    GOLD,
    JUDGE,
    REWARD,
    Estimate,
    Evaluation,
    PolicyResult,
)
from prefloop.config.adapters import CARDS, Card, card_of
from prefloop.config.algorithms import PAIR, ROLLOUTS, WITHOUT_REFERENCE, kind_of
from prefloop.config.trl import PREFIX, TRAINERS, slot_of
from prefloop.report.page import label

WORDS = {
    "sft": "supervised fine-tuning on demonstrations",
    "sample": "candidate responses",
    "choose": "pairs chosen for labeling",
    "label": "votes on pairs of responses",
    "reward": "learning a reward model from votes",
    "reference": "log-probs of the SFT model",
    "kto": "learning from thumbs on single responses (KTO)",
    **{name: f"reinforcement learning on sampled responses ({name.upper()})" for name in ROLLOUTS},
    **{name: f"learning from pairs without a reward model ({name})" for name in PAIR},
    **{slot_of(PREFIX + n): f"TRL's {n} on {t.learns_from}" for n, t in TRAINERS.items()},
}
UNSAFE = (
    "It keeps the base model's errors, biases and unsafe answers. Nothing here was trained or"
    " tested for safety."
)
_USED_BY: Mapping[str, tuple[str, ...]] = {
    "beta": (*(loss for loss in PAIR if loss not in ("orpo", "simpo")), "kto"),
    "flipped_share": ("cdpo", "robust"),
    "soft_labels": PAIR,
    "aggregation": PAIR,
    "ipo_reduction": ("ipo",),
    "simpo_beta": ("simpo",),
    "margin": ("simpo",),
    "sft_weight": ("orpo",),
    "nll_weight": ("cpo",),
    "weights": PAIR,
    "balance_thumbs": ("kto",),
    "reference": tuple(loss for loss in PAIR if loss not in WITHOUT_REFERENCE),
}
"""Settings under ``preference`` that not every loss has a use for, and the losses that have."""
_COUNTS = (
    "rows",
    "prompts",
    "responses",
    "comparisons",
    "votes",
    "pairs",
    "up",
    "down",
    "steps",
    "updates",
)
_MEASURED: Mapping[str, tuple[str, Callable[[PolicyResult], Estimate]]] = {
    "gold score": ("", lambda row: row.gold),
    "wins against SFT, gold scorer": ("%", lambda row: row.win(GOLD)),
    "wins against SFT, reward model": ("%", lambda row: row.win(REWARD)),
    "wins against SFT, judge": ("%", lambda row: row.win(JUDGE)),
    "wins against SFT at equal length,": ("%", lambda row: row.at_equal_length.win),
    "KL to SFT": ("", lambda row: row.kl),
}
"""The columns of the comparison: unit and value."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """The run's final comparison, and its prompts."""

    evaluation: Evaluation
    """Without the verdicts of a reward model that is not known to be better than chance."""
    unquoted: str
    """Why they are left out; empty where they are not."""
    prompts: str


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
    """The comparison as a card prints it."""

    lead: str
    columns: list[str]
    rows: list[list[str]]


def stage_row(made: Manifest) -> dict[str, str]:
    """What the stage of one manifest did, from which files, and how much came out."""
    stage, metrics, reads = made.stage, made.metrics, made.reads
    kind = kind_of(stage)
    counts = [f"{name} {metrics[name]:,}" for name in _COUNTS if isinstance(metrics.get(name), int)]
    return {
        "stage": cell(stage),
        "what": WORDS.get(kind, cell(kind)),
        "data": ", ".join(f"{name} `{cell(file)}`" for name, file in sorted(reads.items())) or "-",
        "result": ", ".join(counts) or "-",
    }


def settings(manifest: Manifest, adapter: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the adapter was trained with: every setting that its own stage uses, under its full
    name; those of the stages before are in their cards.
    """
    identity, kind = manifest.identity, kind_of(manifest.stage)
    backbone = identity["backbone"]
    rows = {
        "adapter": _adapter(described_shape(adapter), backbone.get("adapter") or {}),
        "weights": (
            f"{backbone['precision']}, computed in"
            f" {str(backbone['compute']).removeprefix('torch.')}"
        ),
        "chat template": (
            {"model": "the model's own", "chatml": "ChatML"}.get(
                backbone["chat_template"], "from a file"
            )
        ),
        "longest prompt and response": f"{backbone['max_length']} tokens",
        "seed": str(identity["seed"]),
    }
    rope = backbone.get("rope", {"type": "none"})  # results of older versions have none
    if rope["type"] != "none":
        rows["position embeddings"] = f"stretched by {rope['type']}, factor {rope['factor']:g}"
    flat: dict[str, Any] = {}
    for part in ("config", "generation"):
        _flatten(identity.get(part) or {}, "" if part == "config" else part, flat)
    if "temperature" in identity:
        flat["generation.temperature"] = identity["temperature"]
    if kind in (*PAIR, "kto"):
        flat = {name: value for name, value in flat.items() if uses(kind, name)}
    return [
        *rows.items(),
        *((f"`{cell(name)}`", f"`{cell(value)}`") for name, value in flat.items()),
    ]


def uses(kind: str, name: str) -> bool:
    """Whether a loss on pairs or thumbs uses a setting under ``preference``."""
    return kind in _USED_BY.get(name, (kind,))


def _adapter(shape: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """One line about method and shape."""
    method = said.get("method", shape["method"])
    parts = [CARDS[method].title.partition(":")[0] if method in ("lora", "rslora") else method]
    parts += [f"{name} {shape[name]}" for name in ("r", "alpha") if name in shape]
    modules = shape.get("target_modules", [])
    if isinstance(modules, list):
        modules = ", ".join(sorted({name.rpartition(".")[2] for name in modules}))
    return ", ".join([*parts, *([f"on {modules}"] if modules else [])])


def _flatten(tree: Mapping[str, Any], prefix: str, out: dict[str, Any]) -> None:
    for name, value in tree.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            _flatten(value, path, out)
        else:
            out[path] = value


def measured(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every number but times and counts, with its interval where the stage gave one."""
    out = []
    for name, value in metrics.items():
        bound = any(
            name.endswith(end) and name.removesuffix(end) in metrics for end in ("_low", "_high")
        )
        if (
            name in _COUNTS
            or bound
            or isinstance(value, bool)
            or not isinstance(value, int | float)
        ):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        out.append((f"`{cell(name)}`", f"{value:.4g}{interval}"))
    return out


def comparison(kind: str, compared: Compared | None) -> ComparisonTable | None:
    """The policy next to the bare model and SFT by everything that was measured of it, and the A/A
    control; ``None`` where it was not judged.
    """
    if compared is None or kind not in compared.evaluation.results:
        return None
    results, control = compared.evaluation.results, compared.evaluation.control
    mine = results[kind]
    columns = _columns(mine)
    rows = [
        [
            label(name) if name == BASE else name,
            *(_written(value(results[name]), unit) for unit, value in columns.values()),
        ]
        for name in dict.fromkeys((BASE, BASELINE, kind))
        if name in results
    ]
    if control:
        # The control is a win rate of SFT: it has no gold score, KL or rate at equal length.
        again = PolicyResult(wins=control)
        rows.append(["A/A", *(_written(value(again), unit) for unit, value in columns.values())])
    lead = (
        f"{mine.n_prompts:,} prompts of `{cell(compared.prompts)}`, {mine.n_responses:,}"
        f" responses, {mine.length_mean:.1f} words each on average."
    )
    lead += f" {compared.unquoted}" if compared.unquoted else ""
    return ComparisonTable(
        lead, [name + (", %" if unit else "") for name, (unit, _) in columns.items()], rows
    )


def _columns(row: PolicyResult) -> dict[str, tuple[str, Callable[[PolicyResult], Estimate]]]:
    """What was measured of a policy; the name of the judge is part of a column's name."""
    judges = {
        "wins against SFT, judge": row.judge,
        "wins against SFT at equal length,": row.at_equal_length.judge,
    }
    return {
        f"{name} {cell(judges.get(name, ''))}".rstrip(): (unit, value)
        for name, (unit, value) in _MEASURED.items()
        if value(row).value is not None
    }


def _written(value: Estimate, unit: str) -> str:
    if value.value is None:
        return "-"
    scale, digits = (100, 1) if unit else (1, 3)
    text = f"{value.value * scale:.{digits}f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low * scale:.{digits}f}, {value.high * scale:.{digits}f}]"


def eval_results(kind: str, compared: Compared | None) -> list[EvalResult]:
    """The win rates as Hugging Face's metadata hold them."""
    row = compared.evaluation.results.get(kind) if compared else None
    if compared is None or row is None or kind == BASELINE:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="prompts",
            dataset_name=compared.prompts,
            metric_type="win_rate",
            metric_name=name,
            metric_value=round(value(row).value or 0.0, 4),
        )
        for name, (unit, value) in _columns(row).items()
        if unit
    ]


def cell(value: Any) -> str:
    """A value as one line that ends no table cell and no code span."""
    return " ".join(str(value).split()).replace("`", "'").replace("|", "\\|").replace("<", "&lt;")


def card_for(identity: Mapping[str, Any], adapter: Mapping[str, Any]) -> Card:
    """What is known of an adapter's method, from its manifest's identity and its
    adapter_config.json; files of PEFT's do not tell LoRA's kin apart.
    """
    said = (identity.get("backbone", {}).get("adapter") or {}).get("method")
    return card_of(said or described_shape(adapter)["method"])
