"""Table and picture of ``adapters.py``: what each method costs and reaches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABEL, WIDTH = 9.5, 48.0
"""Height and width of a label in the picture, points."""
HEAD = "| method | trained | loss | reward accuracy, % | s of steps | s of stages | peak, GiB |"


def write_tables(folder: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """``results.json``, ``results.md`` and ``adapters.svg`` of the results in ``folder``, in the
    order of ``methods``.
    """
    places = [folder / f"{method}.json" for method in methods]
    rows = [json.loads(place.read_text(encoding="utf-8")) for place in places if place.is_file()]
    (folder / "results.json").write_text(
        json.dumps({r["method"]: r for r in rows}, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "results.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows), flush=True)
    plot([row for row in rows if "failed" not in row], folder / "adapters.svg")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for each method."""
    return "\n".join([HEAD, "|---|---|---|---|---|---|---|", *map(_row, rows)])


def _row(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['method']} | failed | - | - | - | - | - |"
    cells = [row["method"], f"{row['parameters']:,}", f"{row['loss']:.3f}"]
    if "accuracy" not in row:
        return f"| {' | '.join([*cells, '-', '-', '-', '-'])} |"
    mean, low, high = (100 * value for value in row["accuracy"])
    peak = max(row["peak_bytes"].values(), default=0)
    cells += [
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
        f"{row['steps_s']:.1f}",
        f"{row['stages_s']:.1f}",
    ]
    return f"| {' | '.join([*cells, f'{peak / 2**30:.2f}' if peak else '-'])} |"


def _spread(points: Sequence[Sequence[float]]) -> list[float]:
    """How far above its point each label goes, so that none covers another; all in points of 1/72
    inch.
    """
    placed: list[tuple[float, float]] = []
    up = [0.0] * len(points)
    for i in sorted(range(len(points)), key=lambda i: points[i][1]):
        x, y = points[i]
        beside = [other for at, other in placed if abs(at - x) < WIDTH]
        up[i] = max([y, *(other + LABEL for other in beside)]) - y
        placed.append((x, y + up[i]))
    return up


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Held-out loss against trained parameters; the bare model as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    trained = [row for row in rows if row["parameters"]]
    axes.plot(
        [row["parameters"] for row in trained], [row["loss"] for row in trained], "o", color="C0"
    )
    for row in (row for row in rows if not row["parameters"]):
        axes.axhline(row["loss"], color="0.6", linewidth=1, linestyle="--")
        axes.annotate(
            "bare model",
            (0.01, row["loss"]),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("held-out loss after SFT (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.canvas.draw()
    points = (
        axes.transData.transform([(row["parameters"], row["loss"]) for row in trained])
        * 72
        / figure.dpi
    )
    for row, up in zip(trained, _spread(points), strict=True):
        line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6} if up > LABEL else None
        place = (row["parameters"], row["loss"])
        axes.annotate(
            row["method"],
            place,
            (8, up),
            textcoords="offset points",
            fontsize=8,
            va="center",
            arrowprops=line,
        )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
