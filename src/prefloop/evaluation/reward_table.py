"""A table of a reward model's results on files of labels, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each file and, indented, each subset; percentages with 95 % intervals, ECE before →
    after the temperature.
    """
    out = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("reward model on", "n", "right %", "log loss", "ECE %", "longer %", "people %"):
        out.add_column(
            column, justify="left" if column == "reward model on" else "right", no_wrap=True
        )
    for name, measured in results.items():
        out.add_row(*_row(name.split(".jsonl")[0], measured))
        for subset, part in measured.get("subsets", {}).items():
            out.add_row(*_row(f"  {subset}", part))
        for section, accuracy in measured.get("sections", {}).items():
            out.add_row(f"  RewardBench {section}", "", f"{accuracy * 100:.0f}")
    return out


def _row(name: str, m: Mapping[str, Any]) -> tuple[str, ...]:
    if "separated" in m:
        return name, str(m["prompts"]), _rate(m, "accuracy"), "", "", _rate(m, "longest"), ""
    ece = f"{m['ece_raw'] * 100:.0f} → {m['ece'] * 100:.0f}"
    return (
        name,
        str(m["pairs"]),
        _rate(m, "accuracy"),
        f"{m['loss']:.3f}",
        ece,
        _rate(m, "longer"),
        _rate(m, "people"),
    )


def _rate(m: Mapping[str, Any], name: str) -> str:
    if m[name] is None:
        return "-"
    low, high = m[f"{name}_ci"]
    return f"{m[name] * 100:.0f} [{low * 100:.0f}, {high * 100:.0f}]"
