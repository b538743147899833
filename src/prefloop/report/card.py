"""The model card of an adapter: a ``README.md`` that Hugging Face's tools read, made from what the artifact and its inputs say.

A stage writes one into its artifact before the artifact is sealed, so it holds what is known then and nothing that another build of the
same artifact would say otherwise (no times, no paths). ``prefloop export`` writes the full one, with the run's comparison. People who voted
are counted and not named.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from prefloop.algorithms import PAIR, ROLLOUTS
from prefloop.report.loading import loading
from prefloop.store import MANIFEST

_WORDS = {
    "sft": "supervised fine-tuning on demonstrations",
    "sample": "candidate responses",
    "choose": "pairs chosen for labelling",
    "label": "votes on pairs of responses",
    "reward": "a reward model learnt from votes",
    "reference": "log-probs of the SFT model",
    "kto": "learning from thumbs on single responses (KTO)",
    **{name: f"reinforcement learning on sampled responses ({name.upper()})" for name in ROLLOUTS},
    **{name: f"learning from pairs without a reward model ({name})" for name in PAIR},
}
_COUNTS = ("rows", "prompts", "responses", "comparisons", "votes", "pairs", "up", "down", "steps", "updates")
_COLUMNS = (
    ("gold score", "gold_mean", "gold_low", "gold_high", 1),
    ("wins against SFT, gold scorer", "win_rate_vs_sft", "ci_low", "ci_high", 100),
    ("wins against SFT, reward model", "reward_win_rate", "reward_ci_low", "reward_ci_high", 100),
    ("wins against SFT, judge", "llm_win_rate", "llm_ci_low", "llm_ci_high", 100),
    ("KL to SFT", "kl", "kl_low", "kl_high", 1),
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the run's ``judge`` stage found, and on which prompts."""

    metrics: Mapping[str, Any]
    prompts: str


@dataclasses.dataclass(frozen=True)
class Exported:
    """What only an exported folder's card says."""

    evaluation: Evaluation | None = None
    notes: Sequence[str] = ()
    """What the run discloses about its numbers."""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    merged: str | None = None
    """The floating-point type, when the adapter is merged into whole weights."""


def base_name(model: str) -> str:
    """The model's name; of a local folder its last part alone."""
    local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    return Path(model).expanduser().resolve().name if local else model


def licence(model_folder: Path) -> str | None:
    """What the base model's own card says, where its folder has one that can be read."""
    path = model_folder / "README.md"
    if not path.is_file():  # ModelCard.load would ask the hub
        return None
    try:
        found = ModelCard.load(path).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def lineage(root: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Manifests of everything that the artifact was made from, oldest first, as far as the store still has them."""
    found: dict[str, dict[str, Any]] = {}

    def visit(of: Mapping[str, Any]) -> None:
        for key in of["inputs"].values():
            place = next(iter(sorted(root.glob(f"*-{key[:16]}/{MANIFEST}"))), None)
            if place is not None and key not in found:
                made = json.loads(place.read_text(encoding="utf-8"))
                visit(made)
                found[key] = made

    visit(manifest)
    return list(found.values())


def model_card(
    folder: Path,
    manifest: Mapping[str, Any],
    ancestors: Sequence[Mapping[str, Any]],
    license: str | None = None,
    exported: Exported | None = None,
) -> str:
    """The card of the adapter in ``folder``, as text; the same text for the same artifact."""
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, stage = base_name(adapter["base_model_name_or_path"]), str(manifest["stage"])
    kind = stage.rpartition("-")[0] if stage.rpartition("-")[2].isdigit() else stage
    short = base.rpartition("/")[2]
    merged, evaluation = (exported.merged, exported.evaluation) if exported else (None, None)
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-classification" if kind == "reward" else "text-generation",
        license=license,
        model_name=f"{short}-{stage}",
        tags=["prefloop", *([] if merged else ["lora"]), "rlhf", kind],
        eval_results=_eval_results(kind, evaluation) or None,
    )
    people, simulated = _annotators(ancestors)
    what = f"The weights of `{base}` with an adapter merged in" if merged else f"A LoRA adapter for `{base}`"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md.j2").render(
        card_data=data.to_yaml(),
        title=f"{short}: {kind}",
        summary=f"{what}, made by {_WORDS.get(kind, kind)} with prefloop.",
        stages=[_stage_row(made) for made in (*ancestors, manifest)],
        votes=_votes(people, simulated),
        settings=_settings(manifest, adapter),
        measured=_measured(manifest["metrics"]),
        evaluation=None if exported is None else _evaluation(kind, evaluation),
        limits=_limits(kind, simulated, exported),
        loading=loading(kind, base, adapter["r"], manifest["identity"]["backbone"], exported is not None, bool(merged)),
        versions=_versions(manifest, adapter, exported),
    )
    return str(ModelCard(text))


def write_card(folder: Path, manifest: Mapping[str, Any], root: Path, license: str | None) -> None:
    """Write the card of an artifact under construction beside its adapter."""
    text = model_card(folder, manifest, lineage(root, manifest), license)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _stage_row(made: Mapping[str, Any]) -> dict[str, str]:
    stage, metrics = str(made["stage"]), made["metrics"]
    kind = stage.rpartition("-")[0] if stage.rpartition("-")[2].isdigit() else stage
    reads = made.get("reads", {})
    counts = [f"{name} {metrics[name]:,}" for name in _COUNTS if isinstance(metrics.get(name), int)]
    return {
        "stage": _cell(stage),
        "what": _WORDS.get(kind, _cell(kind)),
        "data": ", ".join(f"{name} `{_cell(file)}`" for name, file in sorted(reads.items())) or "-",
        "result": ", ".join(counts) or "-",
    }


def _annotators(ancestors: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Of the last round, whose comparisons hold those before it."""
    rounds = [made["metrics"]["annotators"] for made in ancestors if made["metrics"].get("annotators")]
    found = rounds[-1] if rounds else []
    return [a for a in found if not a.get("simulated")], [a for a in found if a.get("simulated")]


def _votes(people: Sequence[Mapping[str, Any]], simulated: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if simulated:
        names = ", ".join(f"`{_cell(name)}`" for name in dict.fromkeys(str(a["name"]) for a in simulated))
        parts.append(
            f"{sum(a.get('votes') or 0 for a in simulated):,} votes are of *simulated* annotators ({names}), drawn from a disclosed score: no person cast them."
        )
    if people:
        parts.append(
            f"{sum(a.get('votes') or 0 for a in people):,} votes are of {len({a['name'] for a in people})} annotators or files of labels."
        )
    return " ".join(parts)


def _settings(manifest: Mapping[str, Any], adapter: Mapping[str, Any]) -> list[tuple[str, str]]:
    identity = manifest["identity"]
    backbone = identity["backbone"]
    modules = sorted({name.rpartition(".")[2] for name in adapter["target_modules"]})
    rows = {
        "adapter": f"LoRA, r {adapter['r']}, alpha {adapter['lora_alpha']}, on {', '.join(modules)}",
        "weights": f"{backbone['precision']}, computed in {str(backbone['compute']).removeprefix('torch.')}",
        "chat template": {"model": "the model's own", "chatml": "ChatML"}.get(backbone["chat_template"], "from a file"),
        "longest prompt and response": f"{backbone['max_length']} tokens",
        "seed": str(identity["seed"]),
    }
    flat: dict[str, Any] = {}
    for part in ("config", "generation"):
        _flatten(identity.get(part) or {}, "" if part == "config" else part, flat)
    return [*rows.items(), *((f"`{_cell(name)}`", f"`{_cell(value)}`") for name, value in flat.items())]


def _flatten(tree: Mapping[str, Any], prefix: str, out: dict[str, Any]) -> None:
    for name, value in tree.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            _flatten(value, path, out)
        else:
            out[path] = value


def _measured(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every number but times and counts, with its interval where the stage gave one."""
    out = []
    for name, value in metrics.items():
        bound = any(name.endswith(end) and name.removesuffix(end) in metrics for end in ("_low", "_high"))
        if name in _COUNTS or bound or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        out.append((f"`{_cell(name)}`", f"{value:.4g}{interval}"))
    return out


def _evaluation(kind: str, evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None or kind not in evaluation.metrics["results"]:
        return {}
    results, control = evaluation.metrics["results"], evaluation.metrics.get("control", {})
    mine = results[kind]
    columns = _columns(mine)
    rows = [
        [name, *(_rate(results[name], *column[1:]) for column in columns)]
        for name in dict.fromkeys(("sft", kind))
        if name in results
    ]
    judges = {"win_rate_vs_sft": "gold", "reward_win_rate": "reward"}
    if control:
        rows.append(
            [
                "A/A",
                *(_rate(control.get(judges.get(c[1], ""), {}), "win_rate", "ci_low", "ci_high", c[4]) for c in columns),
            ]
        )
    lead = f"{mine['n_prompts']:,} prompts of `{_cell(evaluation.prompts)}`, {mine['n_responses']:,} responses, {mine['length_mean']:.1f} words each on average."
    return {"lead": lead, "columns": [c[0] + (", %" if c[4] == 100 else "") for c in columns], "rows": rows}


def _columns(row: Mapping[str, Any]) -> list[tuple[str, str, str, str, int]]:
    """What was measured of a policy, the judge that was asked for by its name."""
    judge = f" {_cell(row['llm_judge'])}" if row.get("llm_judge") else ""
    return [
        (text + (judge if field == "llm_win_rate" else ""), field, low, high, scale)
        for text, field, low, high, scale in _COLUMNS
        if row.get(field) is not None
    ]


def _rate(row: Mapping[str, Any], name: str, low: str, high: str, scale: float) -> str:
    if row.get(name) is None:
        return "-"
    digits = 1 if scale == 100 else 3
    interval = f" [{row[low] * scale:.{digits}f}, {row[high] * scale:.{digits}f}]" if row.get(low) is not None else ""
    return f"{row[name] * scale:.{digits}f}{interval}"


def _eval_results(kind: str, evaluation: Evaluation | None) -> list[EvalResult]:
    if evaluation is None:
        return []
    row = evaluation.metrics["results"].get(kind, {})
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="prompts",
            dataset_name=evaluation.prompts,
            metric_type="win_rate",
            metric_name=name,
            metric_value=round(row[field], 4),
        )
        for name, field, *_ in _columns(row)
        if field.endswith(("win_rate", "_vs_sft")) and kind != "sft"
    ]


def _limits(kind: str, simulated: Sequence[Any], exported: Exported | None) -> list[str]:
    use = (
        "scoring responses of the kind that its votes were about"
        if kind == "reward"
        else "research on preference learning, on prompts like those it was trained on"
    )
    lines = [
        f"Meant for {use}.",
        "It has what the base model has of errors, biases and unsafe answers; nothing here was trained or tested for safety.",
    ]
    if simulated:
        lines.append(
            "Simulated annotators voted on a disclosed score: what it prefers is what that score measures, and no evidence of what people prefer."
        )
    if kind == "reward":
        lines.append(
            "A policy that is trained hard against it finds what it gets wrong; scores compare responses to one prompt only."
        )
    elif kind != "sft":
        lines.append("It was rewarded for what its votes preferred, their errors and their taste in length included.")
    return lines + [" ".join(note.split()).replace("<", "&lt;") for note in (exported.notes if exported else ())]


def _versions(manifest: Mapping[str, Any], adapter: Mapping[str, Any], exported: Exported | None) -> str:
    parts = [f"prefloop {manifest['prefloop']}", f"peft {adapter.get('peft_version')}"]
    if exported is None:
        return f"Made with {', '.join(parts)}."
    here = ", ".join(f"{name} {version}" for name, version in sorted(exported.versions.items()))
    return f"Made with {', '.join(parts)}; exported with {here}. Artifact `{manifest['key'][:16]}`."


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("`", "'").replace("|", "\\|").replace("<", "&lt;")
