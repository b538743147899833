"""Tables and the picture of ``label_selection.py``: accuracy against labels, each method beside
random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from prefloop.stats.intervals import clustered_mean

BASELINE = "random"


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By method and number of labels: mean over seeds, and the difference to random on the same
    seeds and test pairs.

    Intervals are 95 % and resample test pairs (and, within a pair, seeds): how other seeds would
    come out, ``by_seed`` shows.
    """
    by = {(row["method"], row["labels"], row["seed"]): row for row in rows}
    found = []
    for method, labels in dict.fromkeys((row["method"], row["labels"]) for row in rows):
        seeds = [seed for m, n, seed in by if (m, n) == (method, labels)]
        paired = [seed for seed in seeds if (BASELINE, labels, seed) in by]
        entry: dict[str, Any] = {
            "method": method,
            "labels": labels,
            "accuracy": float(np.mean([by[method, labels, seed]["accuracy"] for seed in seeds])),
            "by_seed": [by[method, labels, seed]["accuracy"] for seed in seeds],
            "loss": float(np.mean([by[method, labels, seed]["loss"] for seed in seeds])),
        }
        if paired and method != BASELINE:
            difference_SP = np.array(
                [
                    np.subtract(by[method, labels, s]["right"], by[BASELINE, labels, s]["right"])
                    for s in paired
                ]
            )
            values = {str(i): column.tolist() for i, column in enumerate(difference_SP.T)}
            interval = clustered_mean(values, resamples=1000)
            entry["over_random"] = [interval.mean, interval.low, interval.high]
        found.append(entry)
    return found


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's mean difference to random over all sizes after the first: each seed's, and what a
    t-test over seeds says of it.

    That interval is for these test pairs; ``over_pairs`` resamples the pairs, at these seeds.
    """
    by = {(row["method"], row["labels"], row["seed"]): row["right"] for row in rows}
    found = {}
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != BASELINE):
        sizes = sorted({labels for m, labels, _ in by if m == method})[1:]
        seeds = [
            s
            for s in dict.fromkeys(row["seed"] for row in rows)
            if all((m, n, s) in by for m in (method, BASELINE) for n in sizes)
        ]
        if not sizes or len(seeds) < 2:
            continue
        difference_SP = np.array(
            [
                np.mean([np.subtract(by[method, n, s], by[BASELINE, n, s]) for n in sizes], axis=0)
                for s in seeds
            ]
        )
        by_seed = difference_SP.mean(1)
        test = stats.ttest_1samp(by_seed, 0.0)
        pairs = clustered_mean(
            {str(i): [value] for i, value in enumerate(difference_SP.mean(0))}, resamples=1000
        )
        found[method] = {
            "mean": float(by_seed.mean()),
            "over_seeds": [float(bound) for bound in test.confidence_interval(0.95)],
            "p": float(test.pvalue),
            "over_pairs": [pairs.low, pairs.high],
            "by_seed": by_seed.tolist(),
        }
    return found


def show(found: list[dict[str, Any]], pooled: dict[str, Any]) -> None:
    """The closing table."""
    print(f"\n{'labels':>7}  {'method':12}  {'accuracy':>8}  {'over random':>26}  by seed")
    for entry in sorted(found, key=lambda e: (e["labels"], e["method"])):
        mean, low, high = entry.get("over_random", (None, None, None))
        over = (
            ""
            if mean is None
            else f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
        )
        seeds = " ".join(f"{value:.3f}" for value in entry["by_seed"])
        print(
            f"{entry['labels']:7}  {entry['method']:12}  {entry['accuracy']:8.3f}  {over:>26} "
            f" {seeds}",
            flush=True,
        )
    for method, entry in pooled.items():
        (low, high), (low_pairs, high_pairs) = entry["over_seeds"], entry["over_pairs"]
        print(
            f"all sizes after the first, {method} over random: {100 * entry['mean']:+.2f} points,"
            f" [{100 * low:+.2f}, {100 * high:+.2f}] over seeds (p = {entry['p']:.3f}),"
            f" [{100 * low_pairs:+.2f}, {100 * high_pairs:+.2f}] over test pairs; above random on"
            f" {sum(value > 0 for value in entry['by_seed'])} of {len(entry['by_seed'])} seeds",
            flush=True,
        )


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against labels: the mean over seeds as a line, each seed as a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method in dict.fromkeys(entry["method"] for entry in found):
        rows = sorted((e for e in found if e["method"] == method), key=lambda e: e["labels"])
        labels = [entry["labels"] for entry in rows]
        (line,) = axes.plot(labels, [100 * e["accuracy"] for e in rows], marker="o", label=method)
        for entry in rows:
            seeds = [100 * value for value in entry["by_seed"]]
            axes.plot([entry["labels"]] * len(seeds), seeds, ".", color=line.get_color(), alpha=0.4)
    ticks = sorted({entry["labels"] for entry in found})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labeled pairs")
    axes.set_ylabel("accuracy on held-out pairs (%)")
    axes.legend(frameon=False, title="next pairs chosen by")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
