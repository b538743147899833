"""Win rates corrected by people's votes must cover the truth as often as they say, where the
judge's own rate does not.
"""

import dataclasses
import json

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.stats.intervals import clustered_share, verdict_win_rate
from prefloop.stats.prediction_powered import prediction_powered, rogan_gladen

EVALUATIONS = 500
JUDGED, VOTED = 250, 80


def _evaluation(rng, rate, sensitivity=0.9, specificity=0.7, judged=JUDGED, voted=VOTED, ties=0.0):
    """A judge of planted error rates on prompts that people decide for a with probability ``rate``
    (ties half).
    """
    human = (rng.random(judged) < rate).astype(float)
    judge = np.where(
        rng.random(judged) < np.where(human == 1, sensitivity, 1 - specificity), 1.0, 0.0
    )
    human[rng.random(judged) < ties] = 0.5
    judge[rng.random(judged) < ties] = 0.5
    judge_by_prompt = {f"p{i}": [x] for i, x in enumerate(judge.tolist())}
    pairs = {
        f"p{i}": [(h, j)]
        for i, (h, j) in enumerate(zip(human[:voted].tolist(), judge[:voted].tolist(), strict=True))
    }
    return judge_by_prompt, pairs


def _covers(found, truth):
    return found.low <= truth <= found.high


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "at_most"), [(0.2, 0.01), (0.5, 0.2), (0.8, 0.92)])
def test_corrected_intervals_cover_the_planted_win_rate_of_500_evaluations_and_uncorrected_ones_do_not(  # noqa: E501
    rate, at_most
):
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for seed in range(EVALUATIONS):
        judge, pairs = _evaluation(rng, rate)
        hits += [
            _covers(rogan_gladen(judge, pairs), rate),
            _covers(prediction_powered(judge, pairs), rate),
            _covers(verdict_win_rate(judge, seed=seed, resamples=100), rate),
        ]
    corrected_gladen, corrected_powered, uncorrected = hits / EVALUATIONS
    assert corrected_gladen >= 0.93
    assert corrected_powered >= 0.93
    # Sensitivity .9 and specificity .7 turn a rate r into .3 + .6 r: right only at .75.
    assert uncorrected <= at_most


@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity", "voted"),
    [(0.9, 0.95, 0.95, 30), (0.05, 0.99, 0.99, 50), (0.95, 0.9, 0.7, 40)],
    ids=["good-judge-few-votes", "hardly-an-error", "almost-always-won"],
)
def test_few_votes_and_rates_near_the_ends_do_not_break_the_intervals(
    rate, sensitivity, specificity, voted
):
    rng = np.random.default_rng(1)
    hits, n = np.zeros(2), 0
    while n < 300:
        judge, pairs = _evaluation(rng, rate, sensitivity, specificity, voted=voted)
        if (
            len({pair for (pair,) in pairs.values()}) == 1
            or len({h for ((h, _),) in pairs.values()}) == 1
        ):
            continue  # without a vote for either side there is no second error rate to measure
        n += 1
        powered = prediction_powered(judge, pairs)
        hits[1] += _covers(powered, rate)
        try:
            hits[0] += _covers(rogan_gladen(judge, pairs), rate)
        except DataError:
            hits[0] += 1
    assert (hits / n >= 0.93).all()


def test_ties_and_several_comparisons_a_prompt_keep_the_coverage():
    rng = np.random.default_rng(2)
    hits, n, width = np.zeros(2), 200, 3
    for _ in range(n):
        leaning = rng.beta(2, 2, size=120)
        judge, pairs = {}, {}
        for i, chance in enumerate(leaning):
            human = rng.choice(
                [0.0, 0.5, 1.0], size=width, p=[0.8 * (1 - chance), 0.2, 0.8 * chance]
            )
            verdict = np.where(rng.random(width) < 0.75, human, 1.0)
            judge[f"p{i}"] = verdict.tolist()
            if i < 60:
                pairs[f"p{i}"] = list(zip(human.tolist(), verdict.tolist(), strict=True))
        hits += [
            _covers(rogan_gladen(judge, pairs), 0.5),
            _covers(prediction_powered(judge, pairs), 0.5),
        ]
    assert (hits / n >= 0.92).all()
    assert (hits / n <= 0.995).all()


def test_calibration_on_other_prompts_with_another_share_of_wins_serves_rogan_gladen():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        judge, _ = _evaluation(rng, 0.3)
        _, pairs = _evaluation(rng, 0.7, voted=100)
        hits += _covers(
            rogan_gladen(judge, {f"other-{key}": pair for key, pair in pairs.items()}), 0.3
        )
    assert hits / 200 >= 0.93


def _exact_evaluation():
    """100 prompts judged; of 20 with votes 10 won by a (9 seen so), 10 by b (7 seen so)."""
    pairs = {f"v{i}": [(1.0, float(i > 0))] for i in range(10)} | {
        f"w{i}": [(0.0, float(i < 3))] for i in range(10)
    }
    judge = {key: [j] for key, ((_, j),) in pairs.items()}
    return judge | {f"x{i}": [float(i < 38)] for i in range(80)}, pairs


def test_rogan_gladen_is_the_closed_form():
    judge, pairs = _exact_evaluation()
    found = rogan_gladen(judge, pairs)
    assert (found.sensitivity, found.specificity) == pytest.approx((0.9, 0.7))
    assert found.rate == pytest.approx((0.5 + 0.7 - 1) / (0.9 + 0.7 - 1))
    assert (found.n_human, found.n_judge) == (20, 100)
    assert 0 <= found.low < found.rate < found.high <= 1


def test_prediction_powered_is_the_regression_estimator():
    judge, pairs = _exact_evaluation()
    found = prediction_powered(judge, pairs)
    human_V, judge_V = (
        np.array([h for ((h, _),) in pairs.values()]),
        np.array([j for ((_, j),) in pairs.values()]),
    )
    weight = np.cov(human_V, judge_V)[0, 1] / judge_V.var(ddof=1)
    assert found.weight == pytest.approx(weight)
    assert found.rate == pytest.approx(0.5 + weight * (0.5 - 0.6))
    # For many votes the interval tends to the normal one of the two independent parts.
    rng = np.random.default_rng(4)
    judge, pairs = _evaluation(rng, 0.5, judged=20_000, voted=5_000)
    found = prediction_powered(judge, pairs)
    human_V, judge_V = (
        np.array([h for ((h, _),) in pairs.values()]),
        np.array([j for ((_, j),) in pairs.values()]),
    )
    all_P = np.array([j for (j,) in judge.values()])
    variance = (
        np.var(human_V - found.weight * judge_V) / 5_000 + found.weight**2 * all_P.var() / 20_000
    )
    assert found.high - found.low == pytest.approx(2 * 1.960 * variance**0.5, rel=0.01)


def test_votes_everywhere_leave_nothing_to_the_judge():
    rng = np.random.default_rng(5)
    judge, pairs = _evaluation(rng, 0.4, judged=300, voted=300)
    truth = clustered_share({key: [h] for key, ((h, _),) in pairs.items()}, resamples=4000)
    for found in (rogan_gladen(judge, pairs), prediction_powered(judge, pairs)):
        assert found.rate == pytest.approx(truth.mean, abs=1e-9)
        assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=0.02)


def test_a_judge_that_follows_people_narrows_the_interval_and_a_random_one_is_ignored():
    rng = np.random.default_rng(6)
    judge, pairs = _evaluation(rng, 0.5, 0.95, 0.95, judged=600, voted=100)
    alone = clustered_share({key: [h] for key, ((h, _),) in pairs.items()})
    found = prediction_powered(judge, pairs)
    assert found.weight > 0.8
    assert found.high - found.low < 0.75 * (alone.high - alone.low)
    judge, pairs = _evaluation(rng, 0.5, 0.5, 0.5, judged=600, voted=300)
    assert abs(prediction_powered(judge, pairs).weight) < 0.15
    constant = prediction_powered(
        {key: [1.0] for key in judge}, {key: [(h, 1.0)] for key, ((h, _),) in pairs.items()}
    )
    assert constant.weight == 0
    assert constant.rate == pytest.approx(np.mean([h for ((h, _),) in pairs.values()]))


def test_a_judge_hardly_better_than_chance_proves_nothing_by_rogan_gladen():
    pairs = {f"v{i}": [(1.0, float(i < 6))] for i in range(10)} | {
        f"w{i}": [(0.0, float(i < 4))] for i in range(10)
    }
    found = rogan_gladen({f"p{i}": [float(i < 50)] for i in range(100)}, pairs)
    assert (found.sensitivity, found.specificity) == pytest.approx((0.6, 0.6))
    assert (found.low, found.high) == (0.0, 1.0)


def test_exchanging_the_sides_mirrors_both_corrections():
    judge, pairs = _evaluation(np.random.default_rng(8), 0.35, ties=0.2)
    turned = {key: [1 - j for j in verdicts] for key, verdicts in judge.items()}
    turned_pairs = {key: [(1 - h, 1 - j) for h, j in entries] for key, entries in pairs.items()}
    for correct in (rogan_gladen, prediction_powered):
        one, other = correct(judge, pairs), correct(turned, turned_pairs)
        assert (one.rate, one.low, one.high) == pytest.approx(
            (1 - other.rate, 1 - other.high, 1 - other.low)
        )
        json.dumps(dataclasses.asdict(one), allow_nan=False)


def test_what_votes_cannot_answer_is_refused_with_the_reason():
    judge, pairs = _exact_evaluation()
    for correct in (rogan_gladen, prediction_powered):
        with pytest.raises(DataError, match="at least 5 prompts, found 2"):
            correct(judge, dict(list(pairs.items())[:2]))
        with pytest.raises(ValueError, match=r"'v3'.*expected 1, 0.5 or 0"):
            correct(judge, {**pairs, "v3": [(2.0, 1.0)]})
    with pytest.raises(ValueError, match="'elsewhere' has human votes but no judge verdict"):
        prediction_powered(judge, {**pairs, "elsewhere": [(1.0, 1.0)]})
    with pytest.raises(DataError, match="10 prompts all go to one side"):
        rogan_gladen(judge, {key: pair for key, pair in pairs.items() if key.startswith("v")})
    with pytest.raises(
        DataError, match=r"sensitivity 0.10 and specificity 0.30 are no better than chance"
    ):
        rogan_gladen(judge, {key: [(h, 1 - j)] for key, ((h, j),) in pairs.items()})
