"""Presets: the values that published work settled on, by task, adapter method, model size and
amount of data.

Presets override the defaults; the config file and flags override presets. Learning rates are those
of LoRA, times a factor for the method. Where a paper gives a rate for full fine-tuning, ten times
that rate is taken. Every value has its source, or says that it is prefloop's own choice.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from prefloop.base.redact import short
from prefloop.errors import ConfigError, among

OWN = "prefloop's own choice"
REGRET = "LoRA Without Regret (Schulman and Thinking Machines 2025, thinkingmachines.ai/blog/lora)"
LESS = "LoRA Learns Less and Forgets Less (2405.09673v2, section 4)"
QLORA = "QLoRA (2305.14314, appendices A and B)"
TULU = "Tülu 3 (2411.15124; allenai/open-instruct, docs/tulu3.md)"
GLUE = "LoRA (2106.09685; microsoft/LoRA, examples/NLU, MRPC)"
COMPARISON = (
    "PEFT's method comparison (huggingface/peft, method_comparison/MetaMathQA, Llama 3.2 3B)"
)
FEW = "T-Few (2205.05638; r-three/t-few, configs; Adafactor)"

NAMES = ("chat", "classification", "reasoning", "domain")
_RANKS = {
    "chat": (16, f"{OWN}; {QLORA} finds no effect of the rank when all layers have LoRA"),
    "classification": (8, GLUE),
    "reasoning": (
        64,
        f"{QLORA}: 64 for every model; {LESS} recommends 256 for code where memory allows",
    ),
    "domain": (
        128,
        f"{OWN}: half of the 256 of {LESS}, which would rather tune all weights on much new text",
    ),
}
_TIMES: dict[str, tuple[float, str]] = {
    "lora": (1.0, ""),
    "rslora": (1.0, f"{OWN}: LoRA's rate"),
    "dora": (
        0.5,
        (
            "DoRA (2402.09353; NVlabs/DoRA, commonsense_reasoning/llama3_8B_DoRA.sh): 1e-4 on Llama"
            " 3 8B"
        ),
    ),
    "pissa": (1.0, "PiSSA (2404.02948; GraphPKU/PiSSA, scripts): LoRA's rate"),
    "olora": (1.0, f"{OWN}: LoRA's rate"),
    "eva": (1.0, f"{OWN}: LoRA's rate"),
    "adalora": (1.0, f"{COMPARISON}: LoRA's rate"),
    "lora+": (0.25, f"{OWN}: with B at 16 times the rate of A, their geometric mean is LoRA's"),
    "lora-fa": (1.0, f"{COMPARISON}: LoRA's rate"),
    "vera": (10.0, f"{COMPARISON}: 1e-3 where LoRA has 1e-4"),
    "ia3": (10.0, f"{COMPARISON}: 1e-3 where LoRA has 1e-4; {FEW}: 3e-3"),
    "oft": (1.0, f"{COMPARISON}: LoRA's rate"),
    "boft": (1.0, f"{COMPARISON}: LoRA's rate"),
    "hra": (1.0, f"{OWN}: the rate of the other rotations"),
    "miss": (1.0, "MiSS (2409.15371; JL-er/MiSS, scripts): LoRA's rate"),
    "randlora": (1.0, f"{COMPARISON}: LoRA's rate"),
    "prompt": (100.0, f"{FEW}: 0.3, also the rate of its paper (2104.08691), where LoRA has 3e-3"),
    "p-tuning": (10.0, f"{OWN}; PEFT's method comparison also tries five times LoRA's"),
    "prefix": (
        2.5,
        (
            f"{OWN}: in SFT ten times the 5e-5 of its authors (XiangLi1999/PrefixTuning, README),"
            " which hardly moves in a hundred steps"
        ),
    ),
    "p-tuning-v2": (
        20.0,
        (
            f"P-tuning v2 (2110.07602; THUDM/P-tuning-v2, run_script): 7e-3 on BoolQ, where {GLUE}"
            " has 4e-4"
        ),
    ),
    "bitfit": (
        5.0,
        "BitFit (2106.10199; benzakenelad/BitFit, run_glue.py): 1e-3 unless told otherwise",
    ),
    "bottleneck": (1.0, f"{FEW}: LoRA's rate"),
    "delta-lora": (1.0, f"{OWN}: LoRA's rate"),
    "lora-drop": (1.0, f"{OWN}: LoRA's rate"),
    "mole": (10.0, f"{OWN}: a gate is a few numbers a layer, as IA3's vectors are"),
    "full": (0.1, f"{REGRET}, {LESS} and {COMPARISON}: a tenth of LoRA's"),
}
"""By method: the factor on LoRA's learning rate, and its source."""
_LION = (
    0.2,
    (
        "a fifth for Lion, whose authors say 3 to 10 times smaller than AdamW's (2302.06675,"
        " section 5)"
    ),
)
WITHOUT_RANK = frozenset(
    {"full", "bitfit", "ia3", "oft", "boft", "prompt", "p-tuning", "prefix", "p-tuning-v2", "mole"}
)
"""Methods that ignore ``adapter.r``."""
_SMALL, _LARGE = 2_000, 100_000
_LARGE_MODEL = 30.0
_SMALL_MODEL = 1.0
"""Billions of parameters."""
_FASTER = (
    10.0,
    (
        f"{OWN}: ten times that below 1B parameters (57 steps of DPO moved SmolLM2-135M by 0.0 nats"
        " at 1e-5 and by 3.9 at 1e-4)"
    ),
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The settings on which a preset's values depend."""

    method: str = "lora"
    r: int | None = None
    """Rank, where the file or a flag sets one."""
    model: str = ""
    rows: int | None = None
    """Number of demonstrations; None where they cannot be counted."""
    batch: int = 8
    lion: frozenset[str] = frozenset()
    """Stages whose optimizer is Lion, such as sft."""
    holds_out: bool = True
    """Whether SFT holds out demonstrations, which early stopping needs."""
    smallest: int | None = None
    """Smaller side of the smallest linear layer in the model's decoder; None where it is not known.
    """


@dataclasses.dataclass(frozen=True)
class Guide:
    """One value and its source."""

    field: str
    value: Any
    source: str
    logged: bool = False
    """Whether a run mentions the value in its log: a rank that was lowered to fit the model's
    layers.
    """


def guides(preset: str, facts: Facts | None = None) -> list[Guide]:
    """The values that ``preset`` sets. Raises ``ConfigError`` for an unknown preset, with the
    nearest name and all names.
    """
    if preset not in NAMES:
        raise ConfigError(f"preset: unknown {short(preset)} ({among(preset, NAMES)})")
    facts = facts or Facts()
    rank, source = _RANKS[preset]
    r = facts.r or rank
    most = _most(facts)
    lowered = most is not None and r > most
    if most is not None and lowered:
        side = f"{facts.model} has a layer with a side of {facts.smallest}"
        r, source = most, f"lowered from {r}: {side}; {source}"
    alpha, why = 2 * r, LESS
    if facts.method == "rslora":
        alpha = 16
        why = f"{OWN}: a scale alpha / sqrt(r) of 2 at rank 64, as alpha = 2r is for LoRA"
    sizes = [
        Guide("backbone.adapter.r", r, source, lowered),
        Guide("backbone.adapter.alpha", alpha, why),
    ]
    if facts.method in WITHOUT_RANK:
        sizes = []
    return [*sizes, *_rates(preset, facts), *_training(preset, facts)]


def tree(values: list[Guide]) -> dict[str, Any]:
    """Guides as the nested keys of a config file."""
    out: dict[str, Any] = {}
    for guide in values:
        *parents, name = guide.field.split(".")
        section = out
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = guide.value
    return out


def billions(model: str) -> float | None:
    """Parameters of a model in billions, as the last part of its name gives them; None where it
    does not.

    A name may hold other numbers too: the 1M of ``Qwen2.5-7B-Instruct-1M`` is its context.
    """
    name = model.rstrip("/").rpartition("/")[2].upper().replace("_", "-")
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![a-zA-Z0-9])", name)
    whole = [float(size) for size, unit in sizes if unit == "B"]
    small = [float(size) / 1000 for size, unit in sizes if unit == "M"]
    return max(whole or small, default=None)


def smallest_side(model: str) -> int | None:
    """The smaller side of the smallest linear layer in a model's decoder, by its config.json in the
    model's folder or in the hub's cache; None where there is no such file.
    """
    folder = Path(model).expanduser()
    path: Any = folder / "config.json"
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        return int(min(text["hidden_size"], text["intermediate_size"], head * heads))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _most(facts: Facts) -> int | None:
    """The highest rank that every layer takes. It is even, which HRA needs."""
    if facts.smallest is None or facts.method in WITHOUT_RANK:
        return None
    # AdaLoRA starts at 1.5 times its rank.
    side = int(facts.smallest / 1.5) if facts.method == "adalora" else facts.smallest
    return max(1, side - side % 2)


def _rates(preset: str, facts: Facts) -> list[Guide]:
    """Learning rates by stage, with the factor of the adapter method."""
    large = (billions(facts.model) or 0) >= _LARGE_MODEL
    sft = (1e-4, f"{QLORA}: 33B and 65B") if large else (2e-4, f"{QLORA}: 7B and 13B")
    if preset == "classification":
        sft = (4e-4, GLUE)
    size = billions(facts.model) or 0
    reward = (5e-5, "5e-6 for 70B") if size >= 70 else (1e-4, "1e-5 below 70B")
    ten = f"ten times it, {REGRET}"
    rates = {
        "sft": sft,
        "reward": (reward[0], f"Llama 2 (2307.09288, section 3.2.2): {reward[1]}; {ten}"),
        "preference": (1e-5, f"DPO (2305.18290, appendix B): 1e-6; {ten}"),
        "ppo": (
            3e-5,
            (
                "The N+ Implementation Details of RLHF (2403.17031;"
                f" vwxyzjn/summarize_from_feedback_details): 3e-6; {ten}"
            ),
        ),
    }
    # The papers' rates are those of models from 7B parameters on.
    if (billions(facts.model) or _SMALL_MODEL) < _SMALL_MODEL:
        for stage in ("preference", "ppo"):
            rate, source = rates[stage]
            rates[stage] = (rate * _FASTER[0], f"{source}; {_FASTER[1]}")
    times, why = _TIMES.get(facts.method, (1.0, ""))
    guides = []
    for stage, (rate, source) in rates.items():
        if why:
            source += f"; {why}" if times == 1 else f"; {times:g} times it, {why}"
        slower, lion = _LION if stage in facts.lion else (1.0, "")
        source += f"; {lion}" if lion else ""
        value = float(f"{rate * times * slower:.3g}")
        guides.append(Guide(f"{stage}.optim.learning_rate", value, source))
    return guides


def _training(preset: str, facts: Facts) -> list[Guide]:
    from prefloop.config.adapters import card_of

    rows, large = facts.rows, (billions(facts.model) or 0) >= _LARGE_MODEL
    if rows is not None and rows < _SMALL:
        epochs, why = (
            8.0,
            (
                "LIMA (2305.11206, section 3): of 15 passes over 1,000 rows, weights of passes 5 to"
                " 10 were taken"
            ),
        )
    elif rows is not None and rows >= _LARGE:
        epochs, why = 2.0, f"{TULU}: 939,344 rows"
    else:
        epochs, why = (
            3.0,
            f"{OWN}; in pretraining up to four passes are nearly as good as new data (2305.16264)",
        )
    share = 0.1 if rows is not None and rows < _SMALL else 0.05
    dropout = (0.05, f"{QLORA}: 33B and 65B") if large else (0.1, f"{QLORA}: 7B and 13B")
    if not card_of(facts.method).dropout:
        dropout = (0.0, f"{facts.method} has none")
    patience = (
        "Automatic early stopping using cross validation (Prechelt 1998): waiting for three or more"
        " worse looks in a row is among the best trades"
    )
    schedule = ("constant", QLORA) if preset == "chat" else ("linear", TULU)
    values = [
        Guide("backbone.adapter.dropout", *dropout),
        Guide("sft.epochs", epochs, why),
        Guide("sft.eval_share", share, OWN),
        *([Guide("sft.patience", 3, patience)] if facts.holds_out else []),
        Guide("sft.optim.schedule", *schedule),
        Guide("sft.optim.warmup_steps", 0.03, f"{TULU}: 3 % of the steps"),
        Guide("sft.optim.max_grad_norm", 0.3, QLORA),
        Guide("reward.epochs", 1.0, "Llama 2 (2307.09288, section 3.2.2): more can overfit"),
        Guide("preference.beta", 0.1, "DPO (2305.18290, appendix B)"),
        Guide("preference.epochs", 1.0, TULU),
    ]
    if rows is not None and facts.holds_out:
        an_epoch = max(1, round(rows * (1 - share) / facts.batch))
        every = max(1, an_epoch // 4)
        values.append(Guide("sft.eval_every", every, f"{OWN}: four looks a pass"))
    return values
