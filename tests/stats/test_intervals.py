"""Intervals must cover what they claim to cover, and must count prompts, not responses."""

import math

import numpy as np
import pytest
from counted import calls
from scipy import stats

from prefloop.stats.intervals import (
    clustered_mean,
    clustered_share,
    percentile_tail,
    sign_test,
    verdict_win_rate,
    win_rate,
)

SIMULATIONS = 200


def _by_prompt(table):
    return {f"p{i:03d}": row.tolist() for i, row in enumerate(np.atleast_2d(table))}


def _width(result):
    return result.high - result.low


@pytest.mark.parametrize(
    ("prompts", "responses", "between", "within"),
    [(30, 4, 1.0, 1.0), (30, 4, 0.0, 1.0), (30, 1, 1.0, 0.0), (8, 4, 0.5, 1.0)],
    ids=["both-levels-vary", "only-responses-vary", "one-response-each", "few-prompts"],
)
def test_clustered_mean_interval_covers_the_truth_as_often_as_it_says(
    prompts, responses, between, within
):
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(SIMULATIONS):
        table = between * rng.normal(size=(prompts, 1)) + within * rng.normal(
            size=(prompts, responses)
        )
        interval = clustered_mean(_by_prompt(table), seed=seed, resamples=300)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / SIMULATIONS <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "lead"), [(30, 0.5), (10, 0.5), (40, 0.0)])
def test_win_rate_interval_covers_the_truth_as_often_as_it_says(prompts, lead):
    rng = np.random.default_rng(2)
    # Prompt effect N(lead, 1) and response noise N(0, 1) on both sides: a - b is N(lead, 3).
    truth = 0.5 * (1 + math.erf(lead / math.sqrt(6)))
    hits = 0
    for seed in range(SIMULATIONS):
        a = lead + rng.normal(size=(prompts, 1)) + rng.normal(size=(prompts, 3))
        result = win_rate(
            _by_prompt(a), _by_prompt(rng.normal(size=(prompts, 3))), seed=seed, resamples=300
        )
        hits += result.low <= truth <= result.high
    assert 0.90 <= hits / SIMULATIONS <= 0.99


def test_copies_of_a_response_do_not_narrow_the_interval_as_independent_ones_do():
    rng = np.random.default_rng(3)
    single = rng.normal(size=(40, 1))
    alone = clustered_mean(_by_prompt(single))
    copied = clustered_mean(_by_prompt(np.repeat(single, 8, axis=1)))
    independent = clustered_mean(_by_prompt(rng.normal(size=(40, 8))))
    assert _width(copied) == pytest.approx(_width(alone), rel=0.1)
    assert _width(independent) < 0.6 * _width(alone)


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_noise_of_responses_is_not_counted_twice(between):
    rng = np.random.default_rng(12)
    table = between * rng.normal(size=(60, 1)) + rng.normal(size=(60, 4))
    student_width = 2 * 2.0010 * table.mean(axis=1).std(ddof=1) / math.sqrt(60)
    assert _width(clustered_mean(_by_prompt(table), resamples=8000)) == pytest.approx(
        student_width, rel=0.06
    )


def test_many_responses_to_few_prompts_are_not_many_prompts():
    rng = np.random.default_rng(4)
    clustered = rng.normal(size=(10, 1)) + 0.3 * rng.normal(size=(10, 20))
    as_prompts = clustered_mean(_by_prompt(clustered))
    as_if_independent = clustered_mean(_by_prompt(clustered.reshape(-1, 1)))
    assert _width(as_prompts) > 3 * _width(as_if_independent)
    assert (as_prompts.n_clusters, as_if_independent.n_clusters) == (10, 200)


def test_every_prompt_weighs_the_same_however_many_responses_it_has():
    assert clustered_mean({"x": [1.0] * 9, "y": [0.0]}).mean == 0.5
    assert win_rate({"x": [1.0] * 9, "y": [0.0]}, {"x": [0.0], "y": [1.0, 2.0]}).rate == 0.5
    assert verdict_win_rate({"x": [1, 1, 1], "y": [0]}).rate == 0.5


def test_win_rate_counts_all_pairs_and_half_of_the_ties():
    result = win_rate({"x": [1.0, 2.0], "y": [5.0]}, {"x": [1.0, 3.0, 0.0], "y": [5.0]})
    # x: of the six pairs three are won and one is tied; y is one tie.
    assert result.rate == pytest.approx((3.5 / 6 + 0.5) / 2)
    assert result.ties == pytest.approx((1 / 6 + 1) / 2)
    assert (result.n_prompts, result.n_pairs) == (2, 7)


def test_identical_sides_win_half_and_the_interval_says_so():
    scores = _by_prompt(np.random.default_rng(5).normal(size=(30, 4)))
    result = win_rate(scores, scores)
    assert result.rate == pytest.approx(0.5)
    assert result.low <= 0.5 <= result.high


def test_exchanging_the_sides_mirrors_rate_and_interval():
    rng = np.random.default_rng(6)
    scores_a = {f"p{i}": rng.normal(0.3, 1, size=1 + i % 4).tolist() for i in range(25)}
    scores_b = {f"p{i}": rng.normal(size=1 + i % 3).tolist() for i in range(25)}
    forward, backward = win_rate(scores_a, scores_b), win_rate(scores_b, scores_a)
    assert forward.rate == pytest.approx(1 - backward.rate)
    assert (forward.low, forward.high) == pytest.approx((1 - backward.high, 1 - backward.low))
    assert forward.ties == backward.ties


def test_same_seed_same_interval_and_the_order_of_prompts_is_irrelevant():
    values = _by_prompt(np.random.default_rng(7).normal(size=(20, 3)))
    backwards = dict(reversed(values.items()))
    assert clustered_mean(values, seed=1) == clustered_mean(backwards, seed=1)
    assert clustered_mean(values, seed=1) != clustered_mean(values, seed=2)
    assert win_rate(values, backwards, seed=3) == win_rate(backwards, values, seed=3)


def test_a_sweep_has_the_exact_binomial_bound_not_an_interval_of_width_zero():
    swept = verdict_win_rate({f"p{i}": [1.0] for i in range(10)})
    assert (swept.rate, swept.high) == (1.0, 1.0)
    assert swept.low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson, 10 of 10
    lost = verdict_win_rate({f"p{i}": [0.0] for i in range(10)})
    assert (lost.rate, lost.low) == (0.0, 0.0)
    assert lost.high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_nothing_but_ties_is_one_half_with_room_on_both_sides():
    tied = verdict_win_rate({f"p{i}": [0.5, 0.5] for i in range(10)})
    assert (tied.rate, tied.ties) == (0.5, 1.0)
    assert 0.3 < tied.low < 0.5 < tied.high < 0.7


def test_win_rate_bounds_stay_within_zero_and_one():
    almost = verdict_win_rate({f"p{i}": [float(i > 0)] for i in range(12)})
    assert 0 <= almost.low < almost.rate < almost.high <= 1


def test_a_higher_level_gives_a_wider_interval():
    values = _by_prompt(np.random.default_rng(8).normal(size=(30, 2)))
    assert _width(clustered_mean(values, level=0.99)) > 1.2 * _width(
        clustered_mean(values, level=0.9)
    )


def test_percentiles_expand_for_few_prompts_and_return_to_nominal_for_many():
    assert percentile_tail(6, 0.95) < 0.006
    assert percentile_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-5)


@pytest.mark.parametrize(
    "bad", [[], [1.0, math.nan], [math.inf], [[1.0]]], ids=["empty", "nan", "inf", "nested"]
)
def test_values_that_cannot_be_averaged_are_refused_by_prompt(bad):
    values, fine = {"fine": [1.0], "broken": bad}, {"fine": [1.0], "broken": [1.0]}
    with pytest.raises(ValueError, match="'broken'"):
        clustered_mean(values)
    with pytest.raises(ValueError, match="scores of a of prompt 'broken'"):
        win_rate(values, fine)
    with pytest.raises(ValueError, match="scores of b of prompt 'broken'"):
        win_rate(fine, values)
    with pytest.raises(ValueError, match="'broken'"):
        verdict_win_rate(values)


def test_different_prompts_on_the_two_sides_are_refused_by_name():
    with pytest.raises(ValueError, match="'only_a' is in a but not in b"):
        win_rate({"x": [1.0], "only_a": [1.0]}, {"x": [1.0]})
    with pytest.raises(ValueError, match="'only_b' is in b but not in a"):
        win_rate({"x": [1.0]}, {"x": [1.0], "only_b": [1.0]})


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        clustered_mean({})
    with pytest.raises(ValueError, match=r"'x'.*expected 1, 0.5 or 0"):
        verdict_win_rate({"x": [2.0]})
    with pytest.raises(ValueError, match="level"):
        clustered_mean({"x": [1.0]}, level=95)


def test_resamples_are_drawn_together_and_pairs_counted_together():
    """Ten times the resamples, or four times the pairs, cost hardly a call more: numpy does the
    work, not a loop in Python.
    """
    rng = np.random.default_rng(9)
    few, many = ([_by_prompt(rng.normal(size=(80, n))) for _ in range(2)] for n in (4, 8))
    base = calls(lambda: win_rate(*few, resamples=200))
    assert calls(lambda: win_rate(*few, resamples=2000)) < 1.05 * base
    assert calls(lambda: win_rate(*many, resamples=200)) < 1.05 * base


def test_sign_test_is_the_exact_binomial_one_over_prompts():
    verdicts = {f"p{i}": [1.0] for i in range(9)} | {
        "lost": [0.0],
        "tied": [0.5],
        "split": [1.0, 0.0],
    }
    found = sign_test(verdicts)
    assert (found.wins, found.losses, found.ties) == (9, 1, 2)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    for wins, losses in ((0, 3), (7, 7), (60, 40), (1300, 1200)):
        by_prompt = {f"w{i}": [1.0] for i in range(wins)} | {f"l{i}": [0.0] for i in range(losses)}
        assert sign_test(by_prompt).p_value == pytest.approx(
            stats.binomtest(wins, wins + losses).pvalue
        )


def test_sign_test_counts_a_prompt_once_however_many_responses_it_has():
    few = sign_test({f"p{i}": [1.0] * 50 for i in range(4)})
    assert (few.wins, few.p_value) == (4, 0.125)
    assert sign_test({"x": [1.0, 1.0, 0.0]}).wins == 1
    assert sign_test({"x": [0.5], "y": [0.1, 0.9]}).p_value == 1.0


def test_sign_test_rejects_a_true_one_half_no_more_often_than_it_says():
    rng = np.random.default_rng(13)
    p_values = [
        sign_test(_by_prompt(rng.integers(2, size=(40, 1)).astype(float))).p_value
        for _ in range(400)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.06


def test_a_share_is_a_mean_that_stays_between_zero_and_one():
    shares = _by_prompt((np.arange(30) > 0).astype(float)[:, None])
    assert clustered_share(shares).mean == pytest.approx(29 / 30)
    assert clustered_share(shares).high <= 1
    assert clustered_share({f"p{i}": [1.0] for i in range(20)}).low == pytest.approx(
        0.025 ** (1 / 20)
    )
    with pytest.raises(ValueError, match="'x'"):
        clustered_share({"x": [1.5]})
