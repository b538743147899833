"""Length control must take back what length bought, keep what quality bought, and equal an
independent fit.
"""

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from prefloop.errors import DataError
from prefloop.stats.intervals import verdict_win_rate
from prefloop.stats.length_control import (
    DIFFICULTY_RIDGE,
    RIDGE,
    _checked,
    _controlled,
    _difficulties,
    length_controlled_leaderboard,
    length_controlled_win_rate,
)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _by_prompt(values):
    return {f"p{i:03d}": [float(value)] for i, value in enumerate(values)}


def _judged(n, quality, taste, seed, difficulty=0.0, lead=200.0):
    """Verdicts of a judge that pays ``taste`` logits for length, on prompts that favor a by
    ``difficulty`` times N(0, 1).
    """
    rng = np.random.default_rng(seed)
    leads, gamma = rng.normal(lead, 150, size=n), rng.normal(size=n)
    chance = _sigmoid(quality + taste * np.tanh(leads / leads.std()) + difficulty * gamma)
    return _by_prompt(rng.random(n) < chance), _by_prompt(leads), gamma


def _with_difficulties(verdicts, leads, gamma_P, resamples):
    tables = _checked(verdicts, leads)
    return _controlled(*tables, gamma_P, seed=0, resamples=resamples, level=0.95)


def _sklearn_fit(terms_KF, won_K, share_K):
    """The same penalized likelihood by another library: soft verdicts as two weighted copies of
    each row.
    """
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=2000)
    rows = np.vstack([terms_KF, terms_KF])
    labels = np.r_[np.ones(len(won_K)), np.zeros(len(won_K))]
    return model.fit(
        rows, labels, sample_weight=np.r_[share_K * won_K, share_K * (1 - won_K)]
    ).coef_[0]


def test_a_lead_that_is_length_alone_is_taken_back():
    verdicts, leads, _ = _judged(600, quality=0.0, taste=2.0, seed=10)
    assert verdict_win_rate(verdicts).low > 0.65
    controlled = length_controlled_win_rate(verdicts, leads, resamples=300)
    assert controlled.low < 0.5 < controlled.high
    assert controlled.length == pytest.approx(2.0, abs=0.6)


def test_a_lead_in_quality_is_kept():
    verdicts, leads, _ = _judged(600, quality=1.0, taste=0.0, seed=11)
    controlled = length_controlled_win_rate(verdicts, leads, resamples=300)
    assert controlled.low < _sigmoid(1.0) < controlled.high
    assert controlled.low > 0.5
    assert abs(controlled.length) < 0.6


def test_intervals_at_equal_length_cover_one_half_while_the_raw_rate_never_does():
    hits = raw_hits = 0
    for seed in range(100):
        verdicts, leads, _ = _judged(150, quality=0.0, taste=1.5, seed=seed)
        controlled = length_controlled_win_rate(verdicts, leads, seed=seed, resamples=200)
        hits += controlled.low <= 0.5 <= controlled.high
        raw = verdict_win_rate(verdicts, resamples=200)
        raw_hits += raw.low <= 0.5 <= raw.high
    assert hits >= 90
    assert raw_hits <= 5


def test_no_difference_in_length_leaves_the_plain_rate():
    verdicts = {f"p{i}": [float(i % 4 > 0)] for i in range(80)}
    level = {prompt_id: [0.0] for prompt_id in verdicts}
    controlled = length_controlled_win_rate(verdicts, level, resamples=50)
    assert controlled.rate == pytest.approx(0.75, abs=0.002)
    assert controlled.length == 0


def test_a_sweep_has_the_interval_of_a_sweep():
    swept = length_controlled_win_rate(
        {f"p{i}": [1.0] for i in range(10)}, _leads_of(10), resamples=50
    )
    assert 0.9 < swept.rate <= swept.high == 1.0
    assert swept.low == pytest.approx(0.025 ** (1 / 10))


def test_too_few_prompts_and_separation_leave_no_rate():
    few = length_controlled_win_rate(
        {f"p{i}": [i % 2] for i in range(9)}, _leads_of(9), resamples=20
    )
    assert few.unknown == "9 prompts are too few for a rate at equal length, which takes 10"
    assert not length_controlled_win_rate(
        {f"p{i}": [i % 2] for i in range(10)}, _leads_of(10), resamples=20
    ).unknown

    longer = {f"p{i}": [5.0 + i] for i in range(40)}
    swept = length_controlled_win_rate({key: [1.0] for key in longer}, longer, resamples=20)
    assert swept.unknown.startswith(
        "one side wins on nearly every pair, and the winner is nearly always longer"
    )
    lost = length_controlled_win_rate({key: [0.0] for key in longer}, longer, resamples=20)
    assert "the loser is nearly always longer" in lost.unknown
    # Longer on every pair and preferred on nine of ten, or preferred on every pair and longer on
    # half: one of the two is known.
    often = {key: [float(i % 10 > 0)] for i, key in enumerate(longer)}
    assert not length_controlled_win_rate(often, longer, resamples=20).unknown
    assert not length_controlled_win_rate(
        {f"p{i}": [1.0] for i in range(40)}, _leads_of(40), resamples=20
    ).unknown


def _leads_of(n):
    return {f"p{i}": [float(i - n / 2)] for i in range(n)}


def test_the_fit_equals_an_independent_one_with_ties_and_several_responses():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, size=60)
    leads = {f"p{i:03d}": rng.normal(50, 100, size=size).tolist() for i, size in enumerate(sizes)}
    verdicts = {
        key: rng.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=len(x)).tolist()
        for key, x in leads.items()
    }
    lead_K, won_K = np.concatenate(list(leads.values())), np.concatenate(list(verdicts.values()))
    share_K = np.repeat(1 / sizes, sizes)
    gamma_P = rng.normal(3, 2, size=len(leads))
    standard_P = (gamma_P - gamma_P.mean()) / gamma_P.std()
    two_KF = np.stack([np.ones(len(lead_K)), np.tanh(lead_K / lead_K.std())], axis=1)
    three_KF = np.c_[two_KF, np.repeat(standard_P, sizes)]

    theta, phi = _sklearn_fit(two_KF, won_K, share_K)
    plain = length_controlled_win_rate(verdicts, leads, resamples=50)
    assert (plain.quality, plain.length, plain.difficulty) == (
        pytest.approx(theta, abs=1e-5),
        pytest.approx(phi, abs=1e-5),
        None,
    )
    assert plain.rate == pytest.approx(_sigmoid(theta), abs=1e-5)

    theta, phi, psi = _sklearn_fit(three_KF, won_K, share_K)
    given = _with_difficulties(verdicts, leads, gamma_P, resamples=50)
    assert [given.quality, given.length, given.difficulty] == pytest.approx(
        [theta, phi, psi], abs=1e-5
    )
    assert given.rate == pytest.approx(_sigmoid(theta + psi * standard_P).mean(), abs=1e-5)


def test_known_difficulties_explain_verdicts_and_narrow_the_interval():
    verdicts, leads, gamma = _judged(400, quality=0.3, taste=1.0, seed=3, difficulty=2.0)
    without = length_controlled_win_rate(verdicts, leads, resamples=300)
    with_gamma = _with_difficulties(verdicts, leads, gamma, resamples=300)
    truth = _sigmoid(0.3 + 2.0 * np.random.default_rng(1).normal(size=200_000)).mean()
    assert with_gamma.low < truth < with_gamma.high
    assert with_gamma.high - with_gamma.low < without.high - without.low
    assert with_gamma.difficulty == pytest.approx(2.0, abs=0.5)


def _models(seed, prompts=200, quality=(0.0, 1.0, -0.5), lead=(200.0, -150.0, 50.0), taste=1.5):
    rng = np.random.default_rng(seed)
    gamma = rng.normal(size=prompts)
    verdicts, leads = {}, {}
    for m, (theta, longer) in enumerate(zip(quality, lead, strict=True)):
        lead_P = rng.normal(longer, 150, size=prompts)
        chance = _sigmoid(theta + taste * np.tanh(lead_P / lead_P.std()) + gamma)
        verdicts[f"m{m}"], leads[f"m{m}"] = (
            _by_prompt(rng.random(prompts) < chance),
            _by_prompt(lead_P),
        )
    return verdicts, leads, gamma


def _joint_loss(parameters, won_MP, feature_MP):
    """Negative penalized log-likelihood of the joint fit with ψ = 1, and its gradient."""
    models = len(won_MP)
    theta_M, phi_M, gamma_P = (
        parameters[:models],
        parameters[models : 2 * models],
        parameters[2 * models :],
    )
    logit_MP = theta_M[:, None] + phi_M[:, None] * feature_MP + gamma_P
    loss = np.logaddexp(0, logit_MP).sum() - (won_MP * logit_MP).sum()
    error_MP = _sigmoid(logit_MP) - won_MP
    loss += (
        RIDGE / 2 * (theta_M @ theta_M + phi_M @ phi_M) + DIFFICULTY_RIDGE / 2 * gamma_P @ gamma_P
    )
    slope = [error_MP.sum(1) + RIDGE * theta_M, (error_MP * feature_MP).sum(1) + RIDGE * phi_M]
    return loss, np.concatenate([*slope, error_MP.sum(0) + DIFFICULTY_RIDGE * gamma_P])


def test_difficulties_equal_a_direct_minimization_of_the_joint_likelihood():
    verdicts, leads, gamma = _models(4)
    won_MP = np.array([[x[0] for x in verdicts[name].values()] for name in sorted(verdicts)])
    lead_MP = np.array([[x[0] for x in leads[name].values()] for name in sorted(leads)])
    feature_MP = np.tanh(lead_MP / lead_MP.std(axis=1, keepdims=True))
    start = np.zeros(6 + won_MP.shape[1])
    best = optimize.minimize(
        _joint_loss,
        start,
        (won_MP, feature_MP),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
    )
    difficulties = _difficulties([_checked(verdicts[name], leads[name]) for name in verdicts])
    assert difficulties == pytest.approx(best.x[6:], abs=1e-4)
    assert np.corrcoef(difficulties, gamma)[0, 1] > 0.5


def test_a_model_is_fitted_with_the_difficulties_of_the_others():
    verdicts, leads, _ = _models(5)
    everyone = length_controlled_leaderboard(verdicts, leads, resamples=50)
    gamma_P = _difficulties([_checked(verdicts[name], leads[name]) for name in ("m1", "m2")])
    alone = _with_difficulties(verdicts["m0"], leads["m0"], gamma_P, resamples=50)
    assert everyone["m0"] == alone


def test_length_is_removed_from_a_leaderboard_and_its_intervals_cover_the_truth():
    gamma = np.random.default_rng(1).normal(size=100_000)
    truths = {f"m{m}": _sigmoid(theta + gamma).mean() for m, theta in enumerate((0.0, 1.0, -0.5))}
    hits, raw_hits, n = 0, 0, 25
    for seed in range(n):
        verdicts, leads, _ = _models(seed)
        for name, found in length_controlled_leaderboard(
            verdicts, leads, seed=seed, resamples=200
        ).items():
            hits += found.low <= truths[name] <= found.high
            raw = verdict_win_rate(verdicts[name], resamples=200)
            raw_hits += raw.low <= truths[name] <= raw.high
    assert hits >= 0.88 * 3 * n
    assert raw_hits <= 0.5 * 3 * n


def test_what_cannot_be_fitted_is_refused_by_name():
    with pytest.raises(ValueError, match="'x' has 2 verdicts but 1"):
        length_controlled_win_rate({"x": [1.0, 0.0]}, {"x": [5.0]})
    with pytest.raises(DataError, match=r"two or more models.*found 1"):
        length_controlled_leaderboard({"m": {"x": [1.0]}}, {"m": {"x": [1.0]}})
    with pytest.raises(ValueError, match="'y' is in m but not in n"):
        length_controlled_leaderboard(
            {"m": {"x": [1.0], "y": [0.0]}, "n": {"x": [1.0]}},
            {"m": {"x": [1.0], "y": [0.0]}, "n": {"x": [1.0]}},
        )
