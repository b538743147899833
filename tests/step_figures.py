"""Figures of a step of PPO, for tests that show or keep them."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefloop.training.step_metrics import StepMetrics, UpdateMetrics

UPDATE = UpdateMetrics(
    grad_norm=0.31, lr=3e-4, policy_loss=-0.01, value_loss=0.6, clip_fraction=0.0512, ratio=1.01
)
STEP = StepMetrics(
    reward_mean=0.5123,
    reward_std=1.02,
    rewards={"reward_model": 0.5123},
    score_mean=0.4,
    kl=5.4389,
    kl_coef=0.05,
    length_mean=38.5,
    finished_share=0.875,
    repetition=0.1,
    entropy=1.2345,
    logprob_gap=0.0000123,
    explained_variance=-0.25,
    reward_spread=None,
    gold_mean=0.653,
    update=UPDATE,
    seconds={"generate": 10.0, "score": 4.0, "estimate": 0.002, "optimise": 6.0},
    tokens_per_second={"generate": 240.0, "score": 600.0, "optimise": 400.0},
)


def figures(**changes: Any) -> StepMetrics:
    """``STEP`` with other values."""
    return dataclasses.replace(STEP, **changes)
