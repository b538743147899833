"""The names of the algorithms, and what a run of each needs. ``pipeline.algorithms`` builds their
stages.
"""

from __future__ import annotations

from typing import Literal

from prefloop.config import RLHFConfig
from prefloop.config.trl import PREFIX, REWARD_MODEL, TRAINERS, slot_of

PAIR = ("dpo", "cdpo", "robust", "ipo", "hinge", "apo_zero", "apo_down", "orpo", "simpo", "cpo")
"""Losses on pairs, implemented in ``training.dpo.PAIR_LOSSES``. That module is not imported here,
because the command line must not load torch.
"""

WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
"""Losses on pairs that need no reference log-probs."""

ROLLOUTS = ("ppo", "grpo", "rloo", "reinforce")
"""Algorithms that sample while they train. They differ in their estimator
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
``pipeline.algorithms.register`` adds to the list.
"""

FEW_STEPS = 20
"""With fewer optimizer steps little can be learnt, unless the KL shows otherwise."""
REWARD_ONLY = "reward"
"""The value of --algo that trains and measures the reward model only."""
SFT_ONLY = "sft"
"""The value of --algo that stops after supervised fine-tuning."""


def learns_from_votes(algo: str) -> bool:
    """Whether an algorithm is given votes or a reward model made of them in every run."""
    return TRL.get(slot_of(algo), "pairs") in ("pairs", "thumbs")


def reward_model(config: RLHFConfig) -> Literal["needed", "judge", "none"]:
    """Why a run trains a reward model: to learn from it or to measure it ("needed"), to judge with
    it ("judge"; left out where the votes form no pairs), or not at all ("none").

    An algorithm that learns from a file of pairs or thumbs needs no reward model. Such a run trains
    one only where nothing else would judge, or where ``evaluate.reward_model`` asks for it. A run
    that puts candidates to the vote always trains one: another round, or
    ``pipelines/label_round.py``, chooses pairs by it.
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
    """The stage's name without its round: ``ppo`` for ``ppo-2``."""
    name, _, number = stage.rpartition("-")
    return name if number.isdigit() else stage
