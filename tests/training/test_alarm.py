"""The alarm speaks when the figures of rollouts say that the reward is gamed, and not when they are
only noisy.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from prefloop.config import AlarmConfig
from prefloop.training.alarm import (
    Alarm,
    AlarmState,
    Mean,
    Reading,
    clustered,
    needed,
    pooled,
    repetition,
)

GROUP = 4
FLAT: dict[str, float] = {
    "proxy": 0.0,
    "gold": 0.5,
    "length": 40.0,
    "kl": 2.0,
    "repetition": 0.05,
    "spread": 0.3,
}
"""Means of a policy that does not change."""


def rollout(
    rng: np.random.Generator, step: int, prompts: int = 12, judged: bool = True, **means: float
) -> Reading:
    """A rollout of ``prompts`` x 4 responses; prompts differ as much as responses to one prompt do,
    as in the demo.
    """
    now = FLAT | means

    def mean(name: str, between: float, within: float) -> Mean:
        noise_P_G = rng.normal(0, between, (prompts, 1)) + rng.normal(0, within, (prompts, GROUP))
        return clustered((now[name] + noise_P_G).flatten().tolist(), GROUP)

    length_B = rng.lognormal(math.log(now["length"]) - 0.18, 0.6, prompts * GROUP)
    repeated_B = rng.exponential(now["repetition"], prompts * GROUP).clip(max=1)
    proxy = mean("proxy", 0.6, 0.8)
    return Reading(
        step=step,
        proxy=proxy,
        objective=proxy._replace(value=proxy.value - 0.05 * now["kl"]),
        kl=mean("kl", 1, 2),
        length=clustered(length_B.tolist(), GROUP),
        repetition=clustered(repeated_B.tolist(), GROUP),
        spread=mean("spread", 0.1, 0.1),
        gold=mean("gold", 0.15, 0.15) if judged else None,
    )


def first_alarm(
    path: Callable[[int], dict[str, float]],
    steps: int,
    seed: int,
    config: AlarmConfig | None = None,
    **shape: Any,
) -> tuple[int, list[str]] | None:
    """Step and reasons of the first alarm when the means move along ``path``."""
    rng, alarm = np.random.default_rng(seed), Alarm(config or AlarmConfig())
    for step in range(1, steps + 1):
        if reasons := alarm.observe(rollout(rng, step, **shape, **path(step))):
            return step, reasons
    return None


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [2, 4, 12])
def test_noise_raises_almost_no_alarm(prompts: int) -> None:
    found = [first_alarm(lambda step: {}, 150, seed, prompts=prompts) for seed in range(60)]
    assert sum(alarm is not None for alarm in found) <= 1, [alarm for alarm in found if alarm]


@pytest.mark.slow
def test_a_reward_that_rises_while_gold_only_wavers_raises_almost_no_alarm() -> None:
    """Gold's best window is chosen from many: what follows is lower by chance alone."""
    found = [
        first_alarm(lambda step: {"proxy": 0.01 * step}, 300, seed, prompts=4) for seed in range(40)
    ]
    assert sum(alarm is not None for alarm in found) <= 1, [alarm for alarm in found if alarm]


def test_a_healthy_run_whose_limits_are_neared_raises_almost_no_alarm() -> None:
    def healthy(step: int) -> dict[str, float]:
        part = min(1.0, step / 40)
        return {
            "proxy": 1.5 * part,
            "gold": 0.5 + 0.2 * part,
            "length": 40 * (1 + 0.8 * part),
            "kl": 25 * part,
            "repetition": 0.05 + 0.07 * part,
            "spread": 0.3 * (1 + 0.7 * part),
        }

    found = [first_alarm(healthy, 100, seed) for seed in range(40)]
    assert sum(alarm is not None for alarm in found) <= 1, [alarm for alarm in found if alarm]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"gold": 0.3, "proxy": 2.0},
            r"gold fell from 0\.\d+ .* standard errors, while the reward rose",
        ),
        ({"length": 120.0}, r"responses grew from \d.* tokens .*the limit is 2 times"),
        ({"length": 10.0}, r"responses shrank from \d.* tokens .*the limit is 1/2"),
        ({"kl": 60.0}, r"the KL to the reference is \d.* nats a response .*the limit is 30"),
        (
            {"repetition": 0.4},
            r"repeated 4-grams rose from \d.*% to \d.*%.*the limit is 10 points more",
        ),
        ({"spread": 1.0}, r"the spread of the reward ensemble grew from"),
    ],
)
def test_hacking_is_found_within_a_few_steps_and_named(
    change: dict[str, float], words: str
) -> None:

    late = []
    for seed in range(30):
        found = first_alarm(lambda step: change if step > 20 else {"proxy": 0.5}, 40, seed)
        assert found is not None and re.search(words, found[1][0]), found
        late.append(found[0] - 20)
    assert min(late) >= 1 and np.mean(late) <= 4, late


def test_gold_falling_slowly_from_its_peak_is_found_soon_after_it_matters() -> None:
    """Gao et al. 2022: gold rises, turns over, falls; the reward only rises."""

    def path(step: int) -> dict[str, float]:
        root = math.sqrt(step) / 2
        return {"proxy": 0.9 * root, "gold": 0.45 + 0.30 * root - 0.10 * root**2, "kl": root**2}

    found = [first_alarm(path, 60, seed, prompts=16) for seed in range(30)]
    assert all(found)
    assert (
        12 <= np.mean([step for step, _ in found]) <= 30
    )  # the peak is at step 9, .675; at step 25 gold is .575


def test_gold_that_falls_together_with_the_reward_is_not_called_hacking() -> None:
    falling = [
        first_alarm(lambda step: {"gold": 0.7 - 0.01 * step, "proxy": 1 - 0.05 * step}, 50, seed)
        for seed in range(10)
    ]
    assert not any(falling)


def test_a_significant_but_trivial_fall_of_gold_is_no_alarm() -> None:
    def path(step: int) -> dict[str, float]:
        return {"gold": 0.5 if step < 10 else 0.475, "proxy": 0.02 * step}

    assert first_alarm(path, 20, 0, prompts=4000) is None
    assert first_alarm(path, 20, 0, AlarmConfig(gold_drop=0.01), prompts=4000) is not None


def test_without_gold_the_other_rules_still_work() -> None:
    found = first_alarm(lambda step: {"repetition": 0.5} if step > 9 else {}, 20, 0, judged=False)
    assert found is not None and found[0] <= 12
    assert (
        first_alarm(
            lambda step: {"gold": 0.5 - 0.02 * step, "proxy": 0.2 * step}, 20, 0, judged=False
        )
        is None
    )


def test_every_rule_can_be_switched_off_and_looks_be_spaced() -> None:
    off = AlarmConfig(
        gold_drop=None, length_ratio=None, kl=None, repetition=None, spread_ratio=None
    )
    gamed = {
        "gold": 0.0,
        "proxy": 5.0,
        "length": 400.0,
        "kl": 200.0,
        "repetition": 0.8,
        "spread": 3.0,
    }
    assert first_alarm(lambda step: gamed if step > 4 else {}, 30, 0, off) is None
    found = first_alarm(lambda step: gamed if step > 4 else {}, 30, 0, AlarmConfig(every=7))
    assert found is not None and found[0] % 7 == 0 and len(found[1]) == 5


def test_a_rule_speaks_once_and_again_after_a_rollback() -> None:
    rng, alarm = np.random.default_rng(0), Alarm(AlarmConfig(kl=10.0))
    said = [alarm.observe(rollout(rng, step, kl=50.0)) for step in range(1, 6)]
    assert len(said[0]) == 1 and not any(said[1:])
    alarm.rolled_back()
    assert not alarm.observe(rollout(rng, 6, kl=1.0)), "what was rolled back still counts"
    assert any(alarm.observe(rollout(rng, step, kl=50.0)) for step in (7, 8, 9))


def test_the_best_step_is_the_top_of_gold_and_no_lucky_rollout() -> None:
    best = []
    for seed in range(30):
        rng, alarm = np.random.default_rng(seed), Alarm(AlarmConfig())
        for step in range(1, 41):
            alarm.observe(rollout(rng, step, gold=0.8 - abs(step - 20) * 0.02))
        best.append(alarm.best_step)
    assert 18 <= np.mean(best) <= 23 and min(best) >= 15 and max(best) <= 26


def test_without_gold_the_best_step_lies_well_within_every_limit() -> None:
    """The objective alone would choose the step at which the reward is gamed most."""
    for change in ({"kl": 2.5}, {"length": 6.0}, {"repetition": 0.02}):
        ((name, slope),) = change.items()
        rng, alarm = np.random.default_rng(0), Alarm(AlarmConfig())
        for step in range(1, 41):
            path = {"proxy": 0.3 * step, name: FLAT[name] + slope * step}
            if alarm.observe(rollout(rng, step, judged=False, **path)):
                break
        assert alarm.state.raised and 2 <= (alarm.best_step or 0) < step - 1, (
            name,
            step,
            alarm.best_step,
        )


def test_state_survives_json_and_decides_alike() -> None:
    def path(step: int) -> dict[str, float]:
        return {"proxy": 0.05 * step, "gold": 0.6 - 0.0004 * step**2, "kl": 1.5 * step}

    rng = np.random.default_rng(1)
    readings = [rollout(rng, step, **path(step)) for step in range(1, 41)]
    whole, decisions = Alarm(AlarmConfig()), []
    for reading in readings:
        decisions.append((whole.observe(reading), whole.best_step))
    assert sum(len(reasons) for reasons, _ in decisions) >= 2
    state, codec = None, TypeAdapter(AlarmState)
    for reading, expected in zip(readings, decisions, strict=True):
        alarm = Alarm(AlarmConfig(), state)
        assert (alarm.observe(reading), alarm.best_step) == expected
        written = codec.dump_json(alarm.state)
        state = codec.validate_json(written)
        assert state == alarm.state
    assert len(written) < 6000, "the state grows with the run"


def test_standard_errors_are_those_of_prompts() -> None:
    assert clustered([1, 1, 3, 3], 2) == Mean(2.0, 1.0, 1)
    assert clustered([1, 1, 3, 3], 1).se == pytest.approx(math.sqrt(4 / 3 / 4))
    assert clustered([1, 3], 2) == Mean(2.0, 1.0, 1), (
        "responses to a single prompt stand for themselves"
    )
    assert clustered([5], 1) == Mean(5.0, 0.0, 0)
    assert pooled([Mean(1, 3, 2), Mean(2, 4, 5)]) == Mean(1.5, 2.5, 7)
    assert pooled([Mean(1, 3, 2), Mean(2, 0, 0)]).df == 0


def test_rollouts_of_one_response_raise_no_alarm() -> None:
    rng, alarm = np.random.default_rng(0), Alarm(AlarmConfig(kl=1.0))
    for step in range(1, 20):
        full = rollout(rng, step, prompts=1, kl=100.0, length=10.0 * step)
        single = {k: v._replace(se=0.0, df=0) for k, v in vars(full).items() if isinstance(v, Mean)}
        assert not alarm.observe(dataclasses.replace(full, **single))


def test_later_looks_and_fewer_prompts_need_more_standard_errors() -> None:
    assert needed(3, 1, 1000) == pytest.approx(3, abs=0.03)
    assert needed(3, 1, 1000) < needed(3, 10, 1000) < needed(3, 100, 1000) < 4.5
    assert needed(3, 1, 6) > 4


@pytest.mark.parametrize("looks", [1, 50, 2_500, 1_000_000])
def test_all_looks_together_err_as_often_as_is_promised(looks: int) -> None:
    """At 3 degrees of freedom, where the distribution has a closed form: a series for its quantile
    errs 1.6 times as often at 50 looks.
    """

    def below(x: float) -> float:  # the tail itself: 1 less the distribution would lose its digits
        return (math.atan(math.sqrt(3) / x) - x / math.sqrt(3) / (1 + x * x / 3)) / math.pi

    promised = NormalDist().cdf(-3)
    assert looks * below(needed(3, looks, 3)) == pytest.approx(promised, rel=1e-3)


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [
        ([], 0),
        ([1, 2, 3], 0),
        ([1, 2, 3, 4, 5], 0),
        ([1] * 8, 0.8),
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_came_before(
    token_ids: list[int], share: float
) -> None:
    assert repetition(token_ids) == pytest.approx(share)
