"""A policy that has not moved is said to be where it began; warm-up is a share of the steps."""

from typing import Any

import pytest

from prefloop.config import OptimConfig
from prefloop.errors import ConfigError
from prefloop.judging.learnt import unmoved
from prefloop.training.loop import factor


@pytest.mark.parametrize(
    ("kl", "metrics", "said"),
    [
        (0.04, {"steps": 2}, "kto is as good as the SFT model it began as: 0.04 nats of KL after 2 steps."),
        (-0.01, {"steps": 500}, "-0.01 nats of KL after 500 steps"),
        (0.04, {}, "0.04 nats of KL. Its figures say nothing of kto"),
        (0.39, {"steps": 8}, "kto is near the SFT model it began as: 0.39 nats of KL after 8 steps."),
        (0.39, {"steps": 1, "updates": 20}, ""),
        (0.39, {"steps": 200}, ""),
        (5.4, {"steps": 5}, ""),
        (None, {"steps": 5}, ""),
    ],
)
def test_what_has_not_moved_is_said(kl: float | None, metrics: dict[str, Any], said: str) -> None:
    stages = [{"name": "sft", "metrics": {"steps": 1}}, {"name": "kto-2", "metrics": metrics}]
    found = unmoved(stages, {"sft": {"kl": 0.0}, "kto": {"kl": kl}})
    assert len(found) == bool(said) and said in "".join(found)


def test_warm_up_is_a_share_of_the_steps_or_a_count() -> None:
    share, count = OptimConfig(warmup_steps=0.1), OptimConfig(warmup_steps=5)
    assert [share.warmup(total) for total in (0, 2, 5, 20, 1_000)] == [0, 0, 0, 2, 100]
    assert [count.warmup(total) for total in (2, 1_000)] == [5, 5]
    assert OptimConfig().warmup(2) == 0  # two steps learn at the full rate
    assert [factor(share, step, 20) for step in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    with pytest.raises(ConfigError, match=r"ppo\.optim\.warmup_steps: 2\.5 is neither a share of the steps"):
        OptimConfig(warmup_steps=2.5).require("ppo")
