"""Strengths must be those of the maximum likelihood, and say when there is none."""

import dataclasses
import json
import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from prefloop.errors import DataError
from prefloop.stats.bradley_terry import ELO, PRIOR, Game, rank
from prefloop.stats.intervals import verdict_win_rate


def _tournament(theta, prompts, seed, ties=0.2):
    rng = np.random.default_rng(seed)
    games = []
    for prompt in range(prompts):
        for a in range(len(theta)):
            for b in range(a + 1, len(theta)):
                won = float(rng.random() < 1 / (1 + math.exp(theta[b] - theta[a])))
                score = 0.5 if rng.random() < ties else won
                turned = rng.random() < 0.5
                game = (
                    Game(f"m{b}", f"m{a}", 1 - score, f"p{prompt}")
                    if turned
                    else Game(f"m{a}", f"m{b}", score, f"p{prompt}")
                )
                games.append(game)
    return games


def _elo(ranking):
    return {model.name: model.elo for model in ranking.models}


def test_strengths_equal_an_unpenalized_logistic_regression_of_another_library():
    games = _tournament([0.0, 0.4, 1.1, -0.7, 0.2], prompts=60, seed=0)
    names = [f"m{i}" for i in range(5)]
    design = np.zeros((len(games), 5))
    for row, game in enumerate(games):
        design[row, names.index(game.a)], design[row, names.index(game.b)] = 1, -1
    scores = np.array([game.score for game in games])
    rows, labels = np.vstack([design, design]), np.r_[np.ones(len(games)), np.zeros(len(games))]
    # m0 stands at 0, which identifies the others.
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=5000)
    expected = model.fit(rows[:, 1:], labels, sample_weight=np.r_[scores, 1 - scores]).coef_[0]
    found = _elo(rank(games, anchor="m0", resamples=10))
    assert [(found[name] - 1000) / ELO for name in names[1:]] == pytest.approx(expected, abs=1e-5)
    assert rank(games, resamples=10).prior == 0


def test_two_models_get_the_win_rate_with_several_games_on_a_prompt():
    rng = np.random.default_rng(1)
    verdicts = {f"p{i}": rng.choice([0.0, 0.5, 1.0], size=1 + i % 3).tolist() for i in range(40)}
    games = [
        Game("a", "b", score, prompt_id)
        for prompt_id, scores in verdicts.items()
        for score in scores
    ]
    found = rank(games, resamples=10)
    win_rate = verdict_win_rate(verdicts, resamples=10).rate
    a = [model.name for model in found.models].index("a")
    assert found.fitted[a][1 - a] == pytest.approx(win_rate, abs=1e-9)
    assert found.observed[a][1 - a] == pytest.approx(win_rate)
    assert found.models[a].win_rate == pytest.approx(win_rate)


def test_four_hundred_points_are_odds_of_ten_to_one():
    games = [Game("strong", "weak", float(i > 0), f"p{i}") for i in range(11)]
    found = _elo(rank(games, resamples=10))
    assert found["strong"] - found["weak"] == pytest.approx(400, abs=1e-6)
    assert found["strong"] + found["weak"] == pytest.approx(2000)
    assert _elo(rank(games, anchor="weak", resamples=10)) == pytest.approx(
        {"strong": 1400, "weak": 1000}
    )


def test_strengths_follow_the_chain_between_models_that_never_met():
    games = [
        Game(a, b, score, f"{a}{b}{i}")
        for a, b in (("x", "y"), ("y", "z"))
        for i, score in enumerate([1, 1, 1, 0])
    ]
    found = rank(games, resamples=10)
    assert [model.name for model in found.models] == ["x", "y", "z"]
    assert found.observed[0][2] is None
    assert found.fitted[0][2] == pytest.approx(9 / 10)  # odds of three to one, twice
    assert found.fitted[2][0] == pytest.approx(1 / 10)
    assert found.fitted[1][1] == 0.5


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    theta, hits, n = [0.0, 0.8, -0.5], np.zeros(2), 150
    for seed in range(n):
        models = {
            model.name: model
            for model in rank(
                _tournament(theta, 60, seed, ties=0.0), anchor="m0", seed=seed, resamples=200
            ).models
        }
        for m in (1, 2):
            hits[m - 1] += models[f"m{m}"].low <= 1000 + ELO * theta[m] <= models[f"m{m}"].high
    assert (hits / n >= 0.90).all()
    assert (hits / n <= 0.99).all()


def test_games_on_one_prompt_are_no_evidence_of_many():
    separate = _tournament([0.0, 0.5, 1.0], prompts=80, seed=3)
    # The same games, as if eight prompts had ten responses each that all went alike.
    few = [
        dataclasses.replace(game, prompt_id=f"p{i}")
        for i, game in enumerate(separate[: 3 * 8])
        for _ in range(10)
    ]
    clustered = [
        dataclasses.replace(game, prompt_id=f"p{i // 3 // 10}") for i, game in enumerate(few)
    ]
    width = {
        name: rank(games, resamples=300).models[0]
        for name, games in (("one", clustered), ("many", separate))
    }
    assert width["one"].high - width["one"].low > 2 * (width["many"].high - width["many"].low)


def test_an_anchor_has_no_interval_and_the_mean_is_a_thousand_without_one():
    games = _tournament([0.0, 0.5, 1.0], prompts=30, seed=4)
    anchored = {model.name: model for model in rank(games, anchor="m1", resamples=50).models}["m1"]
    assert (anchored.elo, anchored.low, anchored.high) == (1000, 1000, 1000)
    free = rank(games, resamples=50)
    assert np.mean([model.elo for model in free.models]) == pytest.approx(1000)
    assert all(model.low < model.elo < model.high for model in free.models)


def test_the_order_of_games_and_of_sides_changes_nothing():
    games = _tournament([0.0, 0.5, 1.0], prompts=20, seed=5)
    turned = [Game(game.b, game.a, 1 - game.score, game.prompt_id) for game in reversed(games)]
    one, other = rank(games, resamples=50), rank(turned, resamples=50)
    assert _elo(one) == pytest.approx(_elo(other))
    assert [model.low for model in one.models] == pytest.approx(
        [model.low for model in other.models]
    )


def test_a_model_that_wins_everything_gets_a_stated_prior_and_a_finite_strength():
    games = _tournament([0.0, 0.3], prompts=20, seed=6)
    games += [Game("best", other, 1.0, f"p{i}") for i in range(20) for other in ("m0", "m1")]
    found = rank(games, resamples=100)
    assert found.prior == PRIOR
    assert found.models[0].name == "best"
    assert all(
        math.isfinite(x) for model in found.models for x in (model.elo, model.low, model.high)
    )
    assert found.observed[0][1] == 1.0 > found.fitted[0][1] > 0.9
    # The closed form of a clean sweep between two: n + 1/2 wins for, 1/2 against, at θ and -θ.
    swept = rank([Game("a", "b", 1.0, f"p{i}") for i in range(10)], resamples=10).models
    theta = (swept[0].elo - 1000) / ELO
    slope = 10 * (1 - 1 / (1 + math.exp(-2 * theta))) + PRIOR * (1 - 2 / (1 + math.exp(-theta)))
    assert slope == pytest.approx(0, abs=1e-8)


def test_a_resample_without_a_maximum_does_not_break_the_interval():
    games = [Game("a", "b", float(i > 0), f"p{i}") for i in range(12)]
    found = rank(games, resamples=300)
    assert found.prior == 0
    assert all(math.isfinite(x) for model in found.models for x in (model.low, model.high))


def test_models_that_never_met_are_refused_by_group():
    games = [
        Game("a", "b", 1.0, "p"),
        Game("b", "a", 1.0, "q"),
        Game("c", "d", 0.5, "p"),
        Game("d", "e", 0.5, "p"),
    ]
    with pytest.raises(DataError, match=r"2 groups.*\(a, b\); \(c, d, e\)"):
        rank(games)


def test_bad_games_are_refused_with_prompt_and_names():
    with pytest.raises(DataError, match="no games"):
        rank([])
    with pytest.raises(ValueError, match=r"prompt 'p'.*'a' plays against itself"):
        rank([Game("a", "a", 1.0, "p")])
    with pytest.raises(ValueError, match=r"prompt 'p', 'a' against 'b'.*found nan"):
        rank([Game("a", "b", math.nan, "p")])
    with pytest.raises(DataError, match="anchor 'aa' plays no game; did you mean 'a'"):
        rank([Game("a", "b", 1.0, "p")], anchor="aa")


def test_a_ranking_is_json():
    found = rank(_tournament([0.0, 1.0, 0.5], prompts=10, seed=7), resamples=20)
    text = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert (text["n_games"], text["n_prompts"], len(text["models"]), len(text["fitted"])) == (
        30,
        10,
        3,
        3,
    )
