"""The algorithms by name, and what a run of each needs. ``algorithms.py`` makes their stages."""

from __future__ import annotations

from typing import Literal

from prefloop.config import RLHFConfig
from prefloop.config.trl import PREFIX, REWARD_MODEL, TRAINERS, slot_of

PAIR = ("dpo", "cdpo", "robust", "ipo", "hinge", "apo_zero", "apo_down", "orpo", "simpo", "cpo")
"""Losses on pairs; ``training.dpo.PAIR_LOSSES`` holds them (not imported here: the command line
must not load torch).
"""

WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
"""Losses on pairs that read no reference log-probs."""

ROLLOUTS = ("ppo", "grpo", "rloo", "reinforce")
"""Algorithms that sample while they train; they differ in their estimator
(``objectives.estimators``).
"""

TRL = {slot_of(PREFIX + name): trainer.learns_from for name, trainer in TRAINERS.items()}
"""What TRL's trainers learn from, by the slot that each fills."""

SAMPLING = (*ROLLOUTS, *(slot for slot, rows in TRL.items() if rows == "prompts"))
"""Slots of policies that were rewarded for answers which they sampled."""

IMITATING = ("sft", *(slot for slot, rows in TRL.items() if rows == "demonstrations"))
"""Slots of policies that learned from demonstrations alone."""

POLICIES = [*ROLLOUTS, "kto", *PAIR, *TRL]
"""Slots of the algorithms that turn an SFT adapter into an aligned one (``slot_of``).
``algorithms.register`` adds to them.
"""

FEW_STEPS = 20
"""Updates of the weights below which little can be learnt, unless KL shows that it was."""
REWARD_ONLY = "reward"
"""What --algo says to train and measure the reward model alone."""
SFT_ONLY = "sft"
"""What --algo says to stop after supervised fine-tuning."""


def learns_from_votes(algo: str) -> bool:
    """Whether an algorithm is given votes or a reward model made of them in every run."""
    return TRL.get(slot_of(algo), "pairs") in ("pairs", "thumbs")


def reward_model(config: RLHFConfig) -> Literal["needed", "judge", "none"]:
    """What a run trains a reward model for: to learn from or to be measured, to judge alone (left
    out where votes form no pairs), or not at all.

    Learning from a file of pairs or thumbs needs none, so there is one only where nothing else
    would judge, or where ``evaluate.reward_model`` asks for it. Where candidates are put to the
    vote there is one all the same: another round, or ``pipelines/label_round.py``, chooses by it.
    """
    asked = config.evaluate.reward_model
    by_votes = learns_from_votes(config.algo)
    if (
        config.algo in (*ROLLOUTS, REWARD_ONLY)
        or (TRL.get(slot_of(config.algo)) == "prompts" and REWARD_MODEL in config.trl.weights)
        or config.rounds > 1
        or config.data.reward_tests
        or asked == "always"
    ):
        return "needed"
    judged = config.evaluate.judge is not None or config.gold is not None
    if asked == "never" or (judged and config.label.source == "file") or not by_votes:
        return "none"
    return "judge"


def kind_of(stage: str) -> str:
    """The stage's name without its round: ``ppo-2`` is a ``ppo``."""
    name, _, number = stage.rpartition("-")
    return name if number.isdigit() else stage
