"""What --algo may name: one registry, a flag is a look-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prefloop.config import RLHFConfig
from prefloop.errors import ConfigError, nearest, short
from prefloop.stage import Stage


def _rollouts(algo: str) -> Callable[[RLHFConfig], Stage]:
    def make(config: RLHFConfig) -> Stage:
        from prefloop.stages.ppo import PPO

        if config.ppo.uncertainty_penalty and config.reward.members < 2:
            raise ConfigError("ppo.uncertainty_penalty needs reward.members of at least 2: one member has no spread")
        return PPO(config.ppo, config.data, config.gold, algo)

    return make


def _preference(loss: str) -> Callable[[RLHFConfig], Stage]:
    def make(config: RLHFConfig) -> Stage:
        from prefloop.stages.preference import Preference

        return Preference(loss, config.preference)

    return make


def _kto(config: RLHFConfig) -> Stage:
    from prefloop.stages.kto import KTO

    return KTO(config.preference)


PAIR = ("dpo", "cdpo", "robust", "ipo", "hinge", "apo_zero", "apo_down", "orpo", "simpo", "cpo")
"""Losses on pairs; ``training.pairs.PAIR_LOSSES`` holds them (not imported here: the command line must not load torch)."""

ROLLOUTS = ("ppo", "grpo", "rloo", "reinforce")
"""Algorithms that sample while they train; they differ in their estimator (``objectives.estimators``)."""

ALGORITHMS: dict[str, Callable[[RLHFConfig], Stage]] = {
    **{name: _rollouts(name) for name in ROLLOUTS},
    "kto": _kto,
    **{loss: _preference(loss) for loss in PAIR},
}
"""Name → the stage that turns an SFT adapter into an aligned one; its artifact fills the slot of the same name."""


REWARD_ONLY = "reward"
"""What --algo says to train and measure the reward model alone."""
SFT_ONLY = "sft"
"""What --algo says to stop after supervised fine-tuning."""


def reward_model(config: RLHFConfig) -> Literal["needed", "judge", "none"]:
    """What a run trains a reward model for: to learn from or to be measured, to judge alone (left out where votes form no pairs), or not at all.

    Learning from a file of pairs or thumbs needs none, so there is one only where nothing else would judge, or where ``evaluate.reward_model``
    asks for it. Where candidates are put to the vote there is one all the same: another round, or ``pipelines/label_round.py``, chooses by it.
    """
    asked = config.evaluate.reward_model
    if config.algo in (*ROLLOUTS, REWARD_ONLY) or config.rounds > 1 or config.data.reward_tests or asked == "always":
        return "needed"
    judged = config.evaluate.judge is not None or config.gold is not None
    if asked == "never" or (judged and config.label.source == "file"):
        return "none"
    return "judge"


def algorithm(config: RLHFConfig) -> Stage:
    """The stage that ``config.algo`` names; raises ``ConfigError`` with the nearest known name."""
    names = [*ALGORITHMS, REWARD_ONLY, SFT_ONLY]
    if config.algo not in ALGORITHMS:
        raise ConfigError(
            f"algo: unknown algorithm {short(config.algo)} ({nearest(config.algo, names)}; one of {', '.join(names)})"
        )
    return ALGORITHMS[config.algo](config)


def kind_of(stage: str) -> str:
    """The stage's name without its round: ``ppo-2`` is a ``ppo``."""
    name, _, number = stage.rpartition("-")
    return name if number.isdigit() else stage
