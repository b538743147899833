"""The plot of Gao et al. 2022 (arXiv 2210.10760): proxy reward and gold score over distance from
the reference.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from prefloop.artifacts.references import BASE
from prefloop.artifacts.results import Estimate, PolicyResult
from prefloop.report import plots
from prefloop.report.inputs import Curve
from prefloop.report.page import label
from prefloop.report.plots import INK, MUTED, SERIES, Plot
from prefloop.report.summary import Summary

_TEXT = 8.0
_CHARACTER = 0.58 * _TEXT
"""Width of a character in points, generous for any sans-serif the reader's machine may choose."""


class Panel(NamedTuple):
    """One value axis over KL: the path of training as (KL, value, step) and the final policies."""

    y_label: str
    trail: list[tuple[float, float, float]]
    policies: dict[str, tuple[PolicyResult, Estimate]]


class Rectangle(NamedTuple):
    """A rectangle on the figure, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "Rectangle") -> bool:
        """Whether two rectangles share area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


def draw(name: str, stage: str | None, curve: Curve | None, summary: Summary) -> Plot | None:
    """Proxy reward above gold score on one KL axis (square-root scale): the steps of training and
    the final policies.

    Two panels rather than two scales in one: where curves on unrelated scales cross means nothing.
    A panel without data is left out; without a training curve it takes two policies to make a plot.
    """
    # The bare model is no policy that was optimized, and may be so far from SFT that the others
    # could not be told apart.
    finals = {
        p: result
        for p, result in summary.results.items()
        if result.kl.value is not None and p != BASE
    }
    panels = [
        _panel(
            "proxy reward (reward-model score)",
            curve,
            "reward_mean",
            finals,
            lambda r: Estimate(r.reward_mean),
        ),
        _panel("gold score (mean)", curve, "gold_mean", finals, lambda r: r.gold),
    ]
    panels = [panel for panel in panels if panel.trail or len(panel.policies) > 1]
    if not panels:
        return None
    series = plots.colors(list(summary.results))
    reached = [kl for panel in panels for kl, _, _ in panel.trail]
    largest = max(
        reached + [result.kl.high or result.kl.value or 0.0 for result in finals.values()]
    )
    with matplotlib.rc_context(plots.STYLE):
        figure, grid = plots.blank(5.2, 0.6 + 1.95 * len(panels), rows=len(panels))
        for axes, panel in zip(grid, panels, strict=True):
            _data(axes, panel, series, series.get(stage or "", 0))
            plots.axis_labels(axes, "", panel.y_label)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.margins(y=0.16)
        _sqrt_scale(grid[-1], largest)
        grid[-1].set_xlabel("KL to reference (nats per response, square-root scale)")
        figure.draw_without_rendering()
        for axes, panel in zip(grid, panels, strict=True):
            _labels(figure, axes, panel, series)
        names = " and ".join(panel.y_label for panel in panels)
        return Plot(
            plots.to_svg(
                figure,
                name,
                f"{names} against KL to the reference in nats, points labeled by step",
            )
        )


def _panel(
    y_label: str, curve: Curve | None, field: str, finals: dict[str, PolicyResult],
    read: Callable[[PolicyResult], Estimate],
) -> Panel:  # fmt: skip
    trail = []
    if curve is not None:
        kl = dict(zip(*curve.series("kl"), strict=True))
        points = zip(*curve.series(field), strict=True)
        trail = [(max(0.0, kl[step]), value, step) for step, value in points if step in kl]
    policies = {
        policy: (result, read(result))
        for policy, result in finals.items()
        if read(result).value is not None
    }
    return Panel(y_label, trail, policies)


def _data(axes: Axes, panel: Panel, series: dict[str, int], trail_series: int) -> None:
    if panel.trail:
        x, y, _ = zip(*panel.trail, strict=True)
        axes.plot(x, y, color=SERIES[trail_series], linewidth=0.9, alpha=0.45, zorder=2)
        axes.scatter(x, y, s=9, color=SERIES[trail_series], alpha=0.75, linewidth=0, zorder=2)
    for policy, (result, estimate) in panel.policies.items():
        at = (max(0.0, result.kl.value or 0.0), estimate.value or 0.0)
        kl, value = plots.scaled(result.kl, 1), plots.scaled(estimate, 1)
        plots.point(axes, at, x_interval=kl, y_interval=value, series=series[policy])


def _labels(figure: Figure, axes: Axes, panel: Panel, series: dict[str, int]) -> None:
    """Name policies first, then the best step, then steps along the way, each where it covers
    nothing or not at all.
    """
    points_per_pixel = 72 / figure.dpi

    def place(x: float, y: float) -> tuple[float, float]:
        return tuple(axes.transData.transform((x, y)) * points_per_pixel)

    taken = [_around(*place(kl, value), 1.5) for kl, value, _ in panel.trail]
    for result, estimate in panel.policies.values():
        center = (max(0.0, result.kl.value or 0.0), estimate.value or 0.0)
        taken.append(_around(*place(*center), 6))
        for ends in (
            [(x, center[1]) for x in result.kl.interval or ()],
            [(center[0], y) for y in estimate.interval or ()],
        ):
            corners = [place(*end) for end in ends]
            taken += [
                Rectangle(a[0] - 1, a[1] - 1, b[0] + 1, b[1] + 1)
                for a, b in itertools.pairwise(corners)
            ]
    for policy, (result, estimate) in panel.policies.items():
        at = (max(0.0, result.kl.value or 0.0), estimate.value or 0.0)
        _annotate(
            axes,
            plots.short(label(policy)),
            at,
            place(*at),
            taken,
            SERIES[series[policy]],
            bold=True,
        )
    for i, text in _step_labels(panel.trail):
        at = panel.trail[i][:2]
        _annotate(axes, text, at, place(*at), taken, INK if "best" in text else MUTED)


def _step_labels(trail: Sequence[tuple[float, float, float]]) -> Iterable[tuple[int, str]]:
    """The best step, the last, then steps evenly spread over the scale of the KL axis, as indices
    into the trail.
    """
    if not trail:
        return
    best = max(range(len(trail)), key=lambda i: trail[i][1])
    yield best, f"step {trail[best][2]:g}" + (" (best)" if len(trail) > 2 else "")
    root = [math.sqrt(kl) for kl, _, _ in trail]
    wanted = [root[0] + (root[-1] - root[0]) * part / 5 for part in (5, 1, 2, 3, 4)]
    nearest = [min(range(len(root)), key=lambda i, at=at: abs(root[i] - at)) for at in wanted]  # type: ignore[misc]
    yield from ((i, f"step {trail[i][2]:g}") for i in dict.fromkeys(nearest) if i != best)


def _annotate(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    where: tuple[float, float],
    taken: list[Rectangle],
    color: str,
    *,
    bold: bool = False,
) -> None:
    """Write beside a point on the first free side; a bold label is written even where none is
    free.
    """
    half, high = (0.58 if bold else 0.5) * _CHARACTER * len(text), _TEXT
    reach = 9 if bold else 6
    sides = [(0, reach), (0, -reach - high), (reach + half, -high / 2), (-reach - half, -high / 2)]
    sides += [(dx, dy) for dy in (5, -5 - high) for dx in (half + 7, -half - 7)]
    sides += [(0, tier * reach) for tier in (2, 3, -3, -4, 4)] if bold else []
    left, right = (edge * 72 / axes.figure.dpi for edge in axes.get_window_extent().intervalx)
    boxes = [
        Rectangle(where[0] + dx - half, where[1] + dy, where[0] + dx + half, where[1] + dy + high)
        for dx, dy in sides
    ]
    free = [
        i
        for i, box in enumerate(boxes)
        if left - 10 < box.left and box.right < right + 12 and not any(map(box.overlaps, taken))
    ]
    if not free and not bold:
        return
    chosen = free[0] if free else 0
    taken.append(boxes[chosen])
    dx, dy = sides[chosen]
    axes.annotate(
        text,
        at,
        xytext=(dx, dy + 1),
        textcoords="offset points",
        ha="center",
        va="baseline",
        fontsize=_TEXT + bold,
        color=color,
        weight="bold" if bold else "normal",
        zorder=5,
        annotation_clip=False,
    ).set_in_layout(False)


def _around(x: float, y: float, reach: float) -> Rectangle:
    return Rectangle(x - reach, y - reach, x + reach, y + reach)


def _sqrt_scale(axes: Axes, largest: float) -> None:
    """Gao et al. plot against the root of KL, where both rewards are near polynomials; the ticks
    stay in nats.
    """
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(0, 1.22 * largest + 0.01)
    ticks = sorted(
        {0.0, *(_one_two_five(largest * (part / 6) ** 2) for part in range(1, 7) if largest > 0)}
    )
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))


def _one_two_five(value: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(value))
    return max(step * magnitude for step in (1, 2, 5) if step * magnitude <= value * (1 + 1e-9))
