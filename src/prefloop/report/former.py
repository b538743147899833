"""The one place that knows how earlier versions wrote results.

A policy's row was flat (``win_rate_vs_sft``, ``ci_low``, ``llm_win_rate``, …), and a control or an
Elo rating had its own name for its value. Other shapes are left as they are: the typed reader names
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefloop.artifacts.codec import read
from prefloop.artifacts.results import GOLD, JUDGE, REWARD, Evaluation

_WINS = {
    GOLD: ("win_rate_vs_sft", "ci_low", "ci_high"),
    JUDGE: ("llm_win_rate", "llm_ci_low", "llm_ci_high"),
    REWARD: ("reward_win_rate", "reward_ci_low", "reward_ci_high"),
}
_RENAMED = {"llm_judge": "judge", "llm_disagreement": "disagreement", "llm_failed": "failed"}
_USED = ("requests", "retries", "prompt_tokens", "completion_tokens", "cost", "unreported")


def read_evaluation(metrics: dict[str, Any]) -> Evaluation:
    """The metrics of a stage ``judge``, of this version or an earlier one. Raises ``ValueError``
    naming the field.
    """
    return read(Evaluation, modern(metrics))


def modern(raw: Any) -> Any:
    """A summary, or the metrics of a stage ``judge``, with the fields of this version."""
    if not isinstance(raw, dict):
        return raw
    parts: dict[str, Callable[[Any], Any]] = {
        "results": lambda rows: _each(rows, _result),
        "control": lambda rows: _each(rows, lambda row: _estimate(row, "win_rate")),
        "matrix": _matrix,
        "judging": _judging,
        "contamination": _contamination,
        "samples": lambda rows: [_sample(row) for row in rows] if isinstance(rows, list) else rows,
    }
    return {name: parts[name](part) if name in parts else part for name, part in raw.items()}


def _each(rows: Any, change: Any) -> Any:
    return {name: change(row) for name, row in rows.items()} if isinstance(rows, dict) else rows


def _estimate(row: Any, value: str, low: str = "ci_low", high: str = "ci_high") -> Any:
    if not isinstance(row, dict) or value not in row:
        return row
    return {"value": row[value], "low": row.get(low), "high": row.get(high)}


def _result(row: Any) -> Any:
    if not isinstance(row, dict) or isinstance(row.get("wins"), dict):
        return row
    out = {_RENAMED.get(name, name): value for name, value in row.items()}
    out["gold"] = _estimate(row, "gold_mean", "gold_low", "gold_high") if "gold_mean" in row else {}
    if not isinstance(row.get("kl"), dict):
        out["kl"] = {"value": row.get("kl"), "low": row.get("kl_low"), "high": row.get("kl_high")}
    wins = {judge: _estimate(row, *names) for judge, names in _WINS.items() if names[0] in row}
    out["wins"] = {judge: win for judge, win in wins.items() if win["value"] is not None}
    out["at_equal_length"] = {
        "judge": row.get("lc_judge"),
        "win": _estimate(row, "lc_win_rate", "lc_ci_low", "lc_ci_high")
        if "lc_win_rate" in row
        else None,
        "unknown": row.get("lc_unknown"),
    }
    return out


def _matrix(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    rated = _each(table.get("elo"), lambda row: _estimate(row, "rating", "low", "high"))
    return table | {"elo": rated}


def _judging(row: Any) -> Any:
    if not isinstance(row, dict) or "used" in row:
        return row
    bias = row.get("position_bias")
    if isinstance(bias, dict):
        bias = _estimate(bias, "share" if "share" in bias else "rate", "low", "high")
    elif bias is not None:
        bias = {"value": bias}
    used = {name: row[name] for name in _USED if name in row}
    return row | {"used": used, "position_bias": bias}


def _contamination(row: Any) -> Any:
    """Examples were texts at first."""
    if not isinstance(row, dict) or not isinstance(row.get("examples"), list):
        return row
    texts = [
        {"id": "", "train_id": "", "kind": "prompt", "text": one} if isinstance(one, str) else one
        for one in row["examples"]
    ]
    return row | {"examples": texts}


def _sample(row: Any) -> Any:
    """A prompt was one text at first."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        return row
    return row | {"prompt": [{"role": "user", "content": row["prompt"]}]}
