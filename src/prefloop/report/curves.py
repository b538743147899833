"""The curves of one run: what a policy gained and paid, why where it did not, and the losses of
every other stage.
"""

from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator

from prefloop.report import plots
from prefloop.report.inputs import HELD_OUT, Curve
from prefloop.report.page import decimal, stage_label
from prefloop.report.plots import Plot

POLICY_FIELDS = ("reward_mean", "kl")
"""A stage whose steps have these learns from rollouts."""


def policy_plots(stage: str, curve: Curve) -> list[Plot]:
    """The four curves that say whether training worked."""
    band = "reward_std" if curve.has("reward_std") else ""
    drawn = [
        plots.line(
            f"{stage}-reward",
            curve,
            ("reward_mean",),
            "proxy reward (reward-model score)",
            band=band,
            caption="Band: one standard deviation across responses." if band else "",
        ),
        plots.line(f"{stage}-kl", curve, ("kl",), "KL to reference (nats per response)", series=2),
        plots.line(
            f"{stage}-length", curve, ("length_mean",), "response length (tokens)", series=3
        ),
        plots.line(
            f"{stage}-gold", curve, ("gold_mean",), "gold score (never trained on)", series=5
        ),
    ]
    return [plot for plot in drawn if plot]


def diagnostics(stage: str, curve: Curve) -> list[Plot]:
    """The curves that say why, when it did not."""
    fields = {
        "entropy": ("entropy (nats per token)", 1),
        "clip_fraction": ("clipped ratios (%)", 100),
        "value_loss": ("value loss (squared score)", 1),
        "explained_variance": ("explained variance of returns (1: all)", 1),
        "logprob_gap": ("sampler-trainer log-prob gap (nats)", 1),
    }
    drawn = [
        plots.line(
            f"{stage}-{field.replace('_', '-')}", curve, (field,), text, scale=scale, width=3.6
        )
        for field, (text, scale) in fields.items()
    ]
    drawn.append(plots.phases(f"{stage}-seconds", curve, ("generate", "score", "optimise")))
    return [plot for plot in drawn if plot]


def source_plots(stage: str, curve: Curve) -> list[Plot]:
    """A curve for each source of reward, where training had more than one."""
    names = list(dict.fromkeys(name for row in curve.rows for name in row.get("rewards") or {}))
    if len(names) < 2:
        return []
    drawn = [
        plots.line(
            f"{stage}-source-{i}",
            curve,
            ("rewards", name),
            f"{plots.short(name.replace('_', ' '))} (mean score)",
            series=1 + i % 6,
            width=3.6,
        )
        for i, name in enumerate(names)
    ]
    return [plot for plot in drawn if plot]


def held_out_plot(stage: str, curve: Curve) -> Plot | None:
    """Training loss and, where it was looked at, held-out loss; the look with the lowest is marked:
    its weights were kept.
    """
    looks, held = curve.series(HELD_OUT)
    if not looks:
        return None
    steps, losses = curve.series("loss")
    best = min(range(len(looks)), key=lambda i: (held[i], looks[i]))
    y_label = f"{plots.short(stage_label(stage))}: loss (nats)"
    with matplotlib.rc_context(plots.STYLE):
        figure, [axes] = plots.blank(3.6, 2.6)
        smooth = plots.running_mean(losses)
        if smooth:
            axes.plot(steps, losses, color=plots.SERIES[1], alpha=0.3, linewidth=0.9)
        axes.plot(steps, smooth or losses, color=plots.SERIES[1], label="training")
        axes.plot(
            looks,
            held,
            color=plots.SERIES[3],
            marker=plots.MARKERS[3],
            markersize=4,
            label="held out",
        )
        plots.axis_labels(axes, "step", y_label)
        last = max([*steps, *looks])
        plots.mark(axes, looks[best], "best", left=looks[best] > last / 2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(
            loc="outside lower left", ncols=2, fontsize=8, labelcolor=plots.INK, handlelength=1.6
        )
        read = (
            f"held out from {decimal(held[0])} to {decimal(held[-1])}, best {decimal(held[best])}"
            f" at step {looks[best]:.0f}"
        )
        return Plot(plots.to_svg(figure, f"{stage}-loss", f"{y_label} against step, {read}"))


def loss_plots(stage: str, curve: Curve) -> list[Plot]:
    """Loss, accuracy and margin of a supervised or preference stage; pairwise losses carry their
    chance level, ln 2.
    """
    name = plots.short(stage_label(stage))
    pairwise: dict[str, Any] = (
        {"chance": plots.LN2, "chance_label": "ln 2"}
        if stage.partition("-")[0] in ("reward", "dpo")
        else {}
    )
    drawn = [
        held_out_plot(stage, curve)
        or plots.line(
            f"{stage}-loss", curve, ("loss",), f"{name}: loss (nats)", width=3.6, **pairwise
        ),
        plots.line(
            f"{stage}-accuracy",
            curve,
            ("accuracy",),
            f"{name}: pair accuracy (%)",
            width=3.6,
            series=3,
            scale=100,
            chance=50,
            chance_label="chance",
        ),
        plots.line(
            f"{stage}-margin",
            curve,
            ("margin",),
            f"{name}: reward margin (nats)",
            width=3.6,
            series=4,
        ),
    ]
    return [plot for plot in drawn if plot]
