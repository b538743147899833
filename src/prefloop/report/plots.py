"""The figures of a report as inline SVG.

matplotlib draws with stand-in colors, which are then swapped for CSS variables: one drawing
follows the light and the dark theme and the printer. Text stays text, and the style sheet gives it
the font of the page. The same data gives the same bytes: ids are salted with the figure's name.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from prefloop.artifacts.results import BASELINE, Estimate, rivals
from prefloop.report.inputs import Curve
from prefloop.report.page import decimal, interval, percent

INK, MUTED, RULE, PAPER = "#fe0101", "#fe0102", "#fe0103", "#fe0104"
SERIES = [f"#fe02{i:02x}" for i in range(7)]
"""Series 0 is the gray of the baseline; 1 to 6 follow Okabe and Ito. Each has a marker: hue is
never the only cue.
"""
MARKERS = ["o", "s", "D", "^", "v", "p", "h"]
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
} | {color: f"var(--series-{i})" for i, color in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
LN2 = math.log(2)
_LONGEST_LABEL = 22


class Plot(NamedTuple):
    """A figure: its SVG and the caption under it."""

    svg: Markup
    caption: str = ""


def colors(names: Sequence[str]) -> dict[str, int]:
    """The series number of every policy: 0 for the baseline, then 1 to 6 in order, round again if
    there are more.
    """
    return {BASELINE: 0} | {name: 1 + i % 6 for i, name in enumerate(rivals(names))}


def forest(name: str, judge: str, rows: Sequence[tuple[str, Estimate, int]]) -> Plot | None:
    """Win rates against SFT, a row each with its interval and series, and the 50 % line through
    all.
    """
    rows = [row for row in rows if row[1].value is not None]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure, [axes] = blank(5.0, 0.95 + 0.36 * len(rows))
        axes.axvline(50, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        for y, (_, win, i) in enumerate(rows):
            point(axes, (100 * (win.value or 0), y), x_interval=scaled(win, 100), series=i)
        bounds = [
            100 * x
            for _, win, _ in rows
            for x in (win.value, *(win.interval or ()))
            if x is not None
        ]
        axes.set_xlim(max(-2, min(45, *bounds) - 3), min(102, max(55, *bounds) + 3))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MultipleLocator(10))
        axes.set_yticks(range(len(rows)), [short(text) for text, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_xlabel(f"win rate against SFT (%), judged by {judge}")
        numbers = axes.secondary_yaxis("right")
        numbers.set_yticks(
            range(len(rows)),
            [f"{percent(win.value)} {interval(win, 1, 100)}".strip() for _, win, _ in rows],
        )
        numbers.spines["right"].set_visible(False)
        numbers.tick_params(axis="y", labelcolor=INK)
        read = "; ".join(
            f"{text} {percent(win.value)} % {interval(win, 1, 100)}" for text, win, _ in rows
        )
        return Plot(to_svg(figure, name, f"Win rates against SFT judged by {judge}: {read}"))


def line(
    name: str,
    curve: Curve,
    path: tuple[str, ...],
    y_label: str,
    *,
    band: str = "",
    chance: float | None = None,
    chance_label: str = "",
    series: int = 1,
    scale: float = 1.0,
    width: float = 4.8,
    caption: str = "",
    marks: Sequence[tuple[float, str]] = (),
) -> Plot | None:
    """One field of a stage against its step, with a band of ``band`` on both sides, a dashed level
    of chance and marked steps.
    """
    steps, raw = curve.series(*path)
    if not steps:
        return None
    values = [scale * value for value in raw]
    with matplotlib.rc_context(STYLE):
        figure, [axes] = blank(width, 2.3)
        if chance is not None:
            axes.axhline(chance, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                chance_label, (1, chance), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", ha="right", color=MUTED, fontsize=8,
            )  # fmt: skip
        if band:
            spread = dict(zip(*curve.series(band), strict=True))
            reach = [scale * spread.get(step, 0.0) for step in steps]
            low = [value - half for value, half in zip(values, reach, strict=True)]
            high = [value + half for value, half in zip(values, reach, strict=True)]
            axes.fill_between(steps, low, high, color=SERIES[series], alpha=0.16, linewidth=0)
        smooth = running_mean(values)
        axes.plot(
            steps,
            values,
            color=SERIES[series],
            **({"alpha": 0.3, "linewidth": 0.9} if smooth else _dot(steps)),
        )
        if smooth:
            axes.plot(steps, smooth, color=SERIES[series])
        axis_labels(axes, "step", y_label)
        for step, text in marks:
            mark(axes, step, text, left=step > (steps[0] + steps[-1]) / 2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(steps) == 1:
            axes.set_xlim(steps[0] - 1, steps[0] + 1)
        first, last = decimal(values[0]), decimal(values[-1])
        return Plot(
            to_svg(figure, name, f"{y_label} against step, from {first} to {last}"), caption
        )


def overlay(
    name: str,
    curves: Mapping[str, Curve],
    path: tuple[str, ...],
    y_label: str,
    *,
    scale: float = 1.0,
) -> Plot | None:
    """The same field of several runs against step; each has a color, a marker and a line in the
    legend.
    """
    points = {text: curve.series(*path) for text, curve in curves.items()}
    if sum(bool(steps) for steps, _ in points.values()) == 0:
        return None
    with matplotlib.rc_context(STYLE):
        figure, [axes] = blank(4.8, 2.6)
        for i, (text, (steps, raw)) in enumerate(points.items()):
            values = [scale * value for value in raw]
            values = running_mean(values) or values
            look: dict[str, Any] = {
                "color": SERIES[(i + 1) % 7],
                "marker": MARKERS[(i + 1) % 7],
                "markersize": 4.5,
            }
            width = min(
                3.5, 1.4 + 0.9 * (len(points) - 1 - i)
            )  # a curve under another that is the same still shows
            axes.plot(
                steps,
                values,
                label=short(text),
                markevery=max(1, len(steps) // 8),
                linewidth=width,
                **look,
            )
        axis_labels(axes, "step", y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(
            loc="outside lower left", ncols=3, fontsize=8, labelcolor=INK, handlelength=1.6
        )
        read = "; ".join(
            f"{text} from {decimal(scale * raw[0])} to {decimal(scale * raw[-1])}"
            for text, (_, raw) in points.items()
            if raw
        )
        return Plot(to_svg(figure, name, f"{y_label} against step: {read}"))


def phases(name: str, curve: Curve, parts: Sequence[str]) -> Plot | None:
    """Seconds a step spends in each phase, stacked."""
    known = [dict(zip(*curve.series("seconds", part), strict=True)) for part in parts]
    steps = sorted({step for seconds in known for step in seconds})
    if not steps:
        return None
    with matplotlib.rc_context(STYLE):
        figure, [axes] = blank(3.6, 2.3)
        stacked = [[seconds.get(step, 0.0) for step in steps] for seconds in known]
        fills = [SERIES[i] for i in (1, 5, 3)]
        axes.stackplot(steps, stacked, labels=list(parts), colors=fills, alpha=0.75, linewidth=0)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, -0.02),
            fontsize=8,
            labelcolor=INK,
            ncols=3,
            handlelength=1,
        )
        axis_labels(axes, "step", "time per step (seconds)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(bottom=-0.22 * max(map(sum, zip(*stacked, strict=True))))
        return Plot(to_svg(figure, name, f"Seconds per step spent in {', '.join(parts)}"))


def point(
    axes: Axes, at: tuple[float, float], *, series: int, x_interval: list[float] | None = None,
    y_interval: list[float] | None = None,
) -> None:  # fmt: skip
    """A marker with its intervals, haloed in the paper color so that it stays readable over a
    line.
    """
    if x_interval:
        axes.plot(x_interval, [at[1]] * 2, color=SERIES[series], linewidth=1.8, zorder=3)
    if y_interval:
        axes.plot([at[0]] * 2, y_interval, color=SERIES[series], linewidth=1.8, zorder=3)
    axes.plot(
        *at,
        MARKERS[series],
        color=SERIES[series],
        markersize=7,
        markeredgecolor=PAPER,
        markeredgewidth=1.2,
        zorder=4,
        clip_on=False,
    )


def mark(axes: Axes, step: float, text: str, *, left: bool) -> None:
    """A dashed line through a step, its name beside its foot."""
    axes.axvline(step, color=SERIES[2], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        text, (step, 0), xycoords=("data", "axes fraction"), xytext=(-3 if left else 3, 3),
        textcoords="offset points", ha="right" if left else "left", color=SERIES[2], fontsize=8,
    )  # fmt: skip


def scaled(estimate: Estimate, scale: float) -> list[float] | None:
    """The interval in the unit of the axis."""
    return [scale * bound for bound in estimate.interval] if estimate.interval else None


def running_mean(values: Sequence[float]) -> list[float]:
    """A centered mean over a twentieth of a long curve; nothing for a curve short enough to read as
    it is.
    """
    half = len(values) // 40
    if len(values) < 80:
        return []
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _dot(steps: Sequence[float]) -> dict[str, str | int]:
    return {"marker": "o", "markersize": 5 if len(steps) == 1 else 0}


def axis_labels(axes: Axes, x_label: str, y_label: str) -> None:
    """Label the value axis above its end, in reading direction."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, rotation=0, ha="left", va="bottom", color=INK)
    axes.yaxis.set_label_coords(0, 1.04)


def blank(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``rows`` panels that share their horizontal axis; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])


def short(text: str) -> str:
    """A label that leaves room for the plot."""
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an inline ``<svg>``: no prolog, no metadata, ids of its own, the colors of the
    page.
    """
    name = re.sub(
        r"[^\w-]", lambda odd: f"_{ord(odd[0]):x}_", name
    )  # a stage's name may hold quotes and tags
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # the page's font will have it
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = re.sub(
        r"<(style|metadata)\b.*?</\1>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r"<[^>]+>", lambda tag: _themed(tag[0], name), svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    opening = Markup('<svg {} role="img" aria-label="{}">').format(
        Markup(view_box[0] if view_box else ""), alt
    )
    return opening + Markup(svg[svg.index(">") + 1 :])


def _themed(tag: str, name: str) -> str:
    """One tag with ids that no other figure has and colors that follow the page."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return re.sub(r"#fe0[12]0[0-9a-f]", lambda color: _VARIABLES.get(color[0], color[0]), tag)
