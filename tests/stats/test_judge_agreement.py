"""A judge is measured against people as people are against each other; and against its own taste
for a place.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from prefloop.errors import DataError
from prefloop.stats.judge_agreement import HumanItem, human_agreement
from prefloop.stats.position_bias import position_bias


def _items(verdicts, votes, leads=None, source="s"):
    leads = leads if leads is not None else [0.0] * len(verdicts)
    return [
        HumanItem(f"p{i:03d}", vote if isinstance(vote, tuple) else (vote,), verdict, lead, source)
        for i, (verdict, vote, lead) in enumerate(zip(verdicts, votes, leads, strict=True))
    ]


def test_agreement_and_kappa_equal_those_of_another_library_on_single_votes():
    rng = np.random.default_rng(0)
    votes = rng.choice([0.0, 0.5, 1.0], size=200)
    verdicts = np.where(rng.random(200) < 0.6, votes, rng.choice([0.0, 0.5, 1.0], size=200))
    found = human_agreement(_items(verdicts.tolist(), votes.tolist()), resamples=400)["all"].judge
    assert found.with_ties.mean == pytest.approx(np.mean(votes == verdicts))
    decided = (votes != 0.5) & (verdicts != 0.5)
    assert found.without_ties.mean == pytest.approx(np.mean(votes[decided] == verdicts[decided]))
    assert found.without_ties.n_clusters == decided.sum()
    assert found.kappa.mean == pytest.approx(
        cohen_kappa_score((2 * votes).astype(int), (2 * verdicts).astype(int))
    )
    assert found.kappa.low < found.kappa.mean < found.kappa.high


def test_people_are_measured_by_leaving_each_vote_out():
    items = _items([1.0, 1.0, 0.0], [(1.0, 1.0, 0.0), (1.0, 1.0), (0.0,)])
    found = human_agreement(items, resamples=50)["all"]
    # First: votes a, a, b agree with the others in 1/2, 1/2 and 0; second: always; third has nobody
    # to agree with.
    assert found.people.with_ties.mean == pytest.approx((1 / 3 + 1) / 2)
    assert found.people.n_items == 2
    assert found.judge.with_ties.mean == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found.judge_on_shared.with_ties.mean == pytest.approx((2 / 3 + 1) / 2)
    assert (found.n_items, found.n_prompts, found.n_votes) == (3, 3, 6)


def test_a_judge_drawn_like_a_person_agrees_as_people_do():
    rng = np.random.default_rng(1)
    right = rng.random((600, 4)) < 0.8
    truth = rng.integers(2, size=600)
    answers = np.where(right, truth[:, None], 1 - truth[:, None]).astype(float)
    found = human_agreement(
        _items(answers[:, 0].tolist(), [tuple(row) for row in answers[:, 1:].tolist()])
    )["all"]
    assert found.people.with_ties.mean == pytest.approx(0.8**2 + 0.2**2, abs=0.04)
    assert found.judge.with_ties.mean == pytest.approx(found.people.with_ties.mean, abs=0.04)


def test_a_judge_of_length_alone_equals_the_length_baseline():
    rng = np.random.default_rng(2)
    leads = rng.integers(-3, 4, size=120).astype(float)
    votes = rng.choice([0.0, 0.5, 1.0], size=120).tolist()
    found = human_agreement(
        _items(((np.sign(leads) + 1) / 2).tolist(), votes, leads), resamples=50
    )["all"]
    assert found.judge == found.longer


def test_every_source_has_its_own_figures_beside_all():
    items = _items([1.0] * 20, [1.0] * 20, source="easy")
    items += [
        dataclasses.replace(item, prompt_id=f"h{item.prompt_id}", source="hard")
        for item in _items([1.0] * 20, [0.0] * 20)
    ]
    found = human_agreement(items, resamples=50)
    assert list(found) == ["all", "easy", "hard"]
    assert [found[name].judge.with_ties.mean for name in found] == [0.5, 1.0, 0.0]
    assert found["easy"].judge.with_ties.low == pytest.approx(0.025 ** (1 / 20))
    assert (
        found["easy"].judge.kappa is None
    )  # one answer throughout: nothing that chance could miss


def test_a_perfect_judge_has_kappa_one_with_room_below():
    votes = [1.0, 0.0] * 15
    kappa = human_agreement(_items(votes, votes), resamples=50)["all"].judge.kappa
    assert (kappa.mean, kappa.high) == (1.0, 1.0)
    assert kappa.low == pytest.approx((0.025 ** (1 / 30) - 0.5) / 0.5)


def test_nothing_but_ties_has_no_agreement_without_ties():
    found = human_agreement(_items([0.5, 1.0], [1.0, 0.5]), resamples=50)["all"]
    assert found.judge.without_ties is None
    assert found.people is None
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_comparisons_of_one_prompt_are_one_cluster():
    rng = np.random.default_rng(3)
    verdicts, votes = (
        rng.integers(2, size=40).astype(float).tolist(),
        rng.integers(2, size=40).astype(float).tolist(),
    )
    separate = _items(verdicts, votes)
    copied = [item for item in separate for _ in range(8)]
    one, other = human_agreement(separate)["all"].judge, human_agreement(copied)["all"].judge
    assert one.with_ties.mean == pytest.approx(other.with_ties.mean)
    for measure in ("with_ties", "kappa"):
        width = [getattr(x, measure).high - getattr(x, measure).low for x in (one, other)]
        assert width[1] == pytest.approx(width[0], rel=0.1)


def test_intervals_of_agreement_cover_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(4), np.zeros(2)
    for seed in range(100):
        votes = rng.integers(2, size=60).astype(float)
        verdicts = np.where(rng.random(60) < 0.8, votes, 1 - votes)
        found = human_agreement(
            _items(verdicts.tolist(), votes.tolist()), seed=seed, resamples=200
        )["all"].judge
        hits += [
            found.with_ties.low <= 0.8 <= found.with_ties.high,
            found.kappa.low <= 0.6 <= found.kappa.high,
        ]
    assert (hits / 100 >= 0.90).all()
    assert (hits / 100 <= 0.99).all()


def test_bad_comparisons_are_refused_by_prompt():
    with pytest.raises(DataError, match="no comparisons"):
        human_agreement([])
    with pytest.raises(ValueError, match="'p000': a comparison without human votes"):
        human_agreement(_items([1.0], [()]))
    with pytest.raises(ValueError, match=r"'p000'.*found 0.7"):
        human_agreement(_items([0.7], [1.0]))
    with pytest.raises(ValueError, match=r"'p000'.*length lead nan"):
        human_agreement(_items([1.0], [1.0], [math.nan]))


def test_a_judge_that_always_takes_the_first_is_seen_through():
    found = position_bias({f"p{i}": [(1.0, 0.0)] for i in range(20)}, resamples=50)
    assert found.disagreement.mean == found.first_share.mean == found.lean.share == 1.0
    assert found.consistency.mean == 0.0
    assert (found.first_share.low, found.lean.low) == pytest.approx((0.025 ** (1 / 20),) * 2)
    assert found.lean.biased
    assert found.lean.p == pytest.approx(2 / 2**20)


def test_a_consistent_judge_has_no_lean_whatever_it_prefers():
    orders = {f"p{i}": [(float(i % 3 == 0), float(i % 3 == 0)), (0.5, 0.5)] for i in range(30)}
    found = position_bias(orders, resamples=50)
    assert found.consistency.mean == 1.0
    assert found.disagreement.mean == 0.0
    assert found.disagreement.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert found.first_share.mean == 0.5
    assert (found.lean.decided, found.lean.share, found.lean.p) == (0, None, None)
    assert (found.n_comparisons, found.n_prompts) == (60, 30)


def test_lean_is_an_exact_share_of_the_prompts_that_lean():
    orders = {f"f{i}": [(1.0, 0.0)] for i in range(14)} | {f"s{i}": [(0.0, 1.0)] for i in range(4)}
    orders |= {f"c{i}": [(1.0, 1.0)] for i in range(30)} | {"half": [(1.0, 0.5)]}
    found = position_bias(orders, resamples=200)
    exact = stats.binomtest(15, 19)
    assert (found.lean.first, found.lean.decided, found.lean.p) == (
        15,
        19,
        pytest.approx(exact.pvalue),
    )
    assert (found.lean.low, found.lean.high) == pytest.approx(
        tuple(exact.proportion_ci(method="exact"))
    )
    assert found.consistency.mean == pytest.approx(30 / 49)
    assert found.first_share.mean == pytest.approx((14 + 15 + 0.75) / 49)
    with pytest.raises(ValueError, match="'x'"):
        position_bias({"x": [(2.0, 0.0)]})
