"""A policy that has not moved is said to be where it began; warm-up is a share of the steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.artifacts.results import Estimate, PolicyResult
from prefloop.config import OptimConfig
from prefloop.errors import ConfigError
from prefloop.evaluation.learnt import unmoved
from prefloop.pipeline.stage import seconds_before
from prefloop.training.loop import factor


def rows(**kl: float | None) -> dict[str, PolicyResult]:
    return {policy: PolicyResult(kl=Estimate(value)) for policy, value in kl.items()}


@pytest.mark.parametrize(
    ("kl", "metrics", "said"),
    [
        (
            0.04,
            {"steps": 2},
            "kto is still the SFT model that it began as: 0.04 nats of KL after 2 steps.",
        ),
        (-0.01, {"steps": 500}, "-0.01 nats of KL after 500 steps"),
        (0.04, {}, "0.04 nats of KL. Its figures say nothing of kto"),
        (
            0.39,
            {"steps": 8},
            "kto is near the SFT model that it began as: 0.39 nats of KL after 8 steps.",
        ),
        (0.39, {"steps": 1, "updates": 20}, ""),
        (0.39, {"steps": 200}, ""),
        (5.4, {"steps": 5}, ""),
        (None, {"steps": 5}, ""),
    ],
)
def test_what_has_not_moved_is_said(kl: float | None, metrics: dict[str, Any], said: str) -> None:
    found = unmoved({"sft": {"steps": 1}, "kto": metrics}, rows(sft=0.0, kto=kl))
    assert len(found) == bool(said) and said in "".join(found)


def test_a_policy_whose_few_steps_show_no_change_is_told_of_its_rate_too() -> None:
    def told(kl: float, low: float, high: float) -> str:
        row = PolicyResult(kl=Estimate(kl, low, high))
        return "".join(unmoved({"kto": {"steps": 2}}, {"kto": row}))

    noise = told(0.14, -0.13, 0.36)
    assert noise.startswith(
        "kto is still the SFT model that it began as: 0.14 [-0.13, 0.36] nats of KL after 2 steps."
    )
    assert "a higher learning rate" in noise and "a higher learning rate" in told(0.39, 0.2, 0.6)
    assert told(0.39, 0.2, 0.6).startswith("kto is near the SFT model")


def test_sft_that_learnt_nothing_is_said_and_a_bare_model_is_no_policy() -> None:
    (told,) = unmoved({}, rows(base=0.03, sft=0.0, dpo=4.0))
    assert told.startswith(
        "SFT is still the bare model that it began as: 0.03 nats of KL between them."
    )
    for kl in (0.4, None):
        assert unmoved({}, rows(base=kl, sft=0.0, dpo=4.0)) == []


def test_warm_up_is_a_share_of_the_steps_or_a_count() -> None:
    share, count = OptimConfig(warmup_steps=0.1), OptimConfig(warmup_steps=5)
    assert [share.warmup(total) for total in (0, 2, 5, 20, 1_000)] == [0, 0, 0, 2, 100]
    assert [count.warmup(total) for total in (2, 1_000)] == [5, 5]
    assert OptimConfig().warmup(2) == 0  # two steps learn at the full rate
    assert [factor(share, step, 20) for step in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    with pytest.raises(
        ConfigError, match=r"ppo\.optim\.warmup_steps: 2\.5 is neither a share of the steps"
    ):
        OptimConfig(warmup_steps=2.5).require("ppo")


def test_the_time_of_a_stage_is_that_of_all_its_processes_since_it_started(tmp_path: Path) -> None:
    def event(second: int, **fields: Any) -> bytes:
        return (
            json.dumps(
                {"at": f"2026-11-30T10:00:{second:02d}.500+00:00", "stage": "dpo", **fields}
            ).encode()
            + b"\n"
        )

    started, resumed = ({"event": "stage", "status": status} for status in ("started", "resumed"))
    log = tmp_path / "events.jsonl"
    assert seconds_before(log) == 0
    log.write_bytes(
        event(0, **started)
        + event(9, event="step")  # forgotten: it started anew
        + event(10, **started)
        + event(12, event="step")
        + b'{"at": 3}\n\xff\xfe\n[]\n{"at": "2026-11-30T10:00:14"}\n'
        + event(15, event="step")
        + event(30, **resumed)
        + event(37, event="step")
        + event(50, **resumed)
        + b'{"at": "2026-11-30T10:0'
    )
    assert seconds_before(log) == 5 + 7
