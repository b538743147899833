"""Losses and estimators against published numbers, closed forms and direct formulas."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from prefloop.objectives import ppo, preference
from prefloop.objectives.estimators import ESTIMATORS, estimate
from prefloop.objectives.reward import bradley_terry

MARGINS = torch.tensor([0.0, 10.0, 20.0])
POLICY_CHOSEN = torch.tensor([-0.5, -10.0, -1.0])
POLICY_REJECTED = torch.tensor([-0.1, -30.0, -21.0])
REFERENCE_CHOSEN = torch.tensor([-0.5, -10.1, -0.1])
REFERENCE_REJECTED = torch.tensor([-0.1, -20.1, -0.1])


def golden(found: Tensor, expected: list[float]) -> None:
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_dpo_golden_vector() -> None:
    golden(preference.dpo(MARGINS, beta=0.1), [0.693147, 0.313262, 0.126928])


def test_conservative_dpo_golden_vector() -> None:
    golden(preference.dpo(MARGINS, beta=0.1, label_smoothing=0.1), [0.693147, 0.413262, 0.326928])


def test_hinge_golden_vector() -> None:
    golden(preference.hinge(MARGINS, beta=0.1), [1, 0, 0])


def test_ipo_on_summed_log_probs_golden_vector() -> None:
    golden(preference.ipo(MARGINS, tau=0.1), [25, 25, 225])


def test_ipo_on_mean_log_probs_golden_vector() -> None:
    margin = (POLICY_CHOSEN - REFERENCE_CHOSEN) / 5 - (POLICY_REJECTED - REFERENCE_REJECTED) / 10
    golden(preference.ipo(margin, tau=0.1), [25, 15.9201, 9.5481])


@pytest.mark.parametrize(
    ("logratio", "desirable", "expected"),
    [
        (POLICY_CHOSEN - REFERENCE_CHOSEN, True, [0.507499, 0.505, 0.529964]),
        (POLICY_REJECTED - REFERENCE_REJECTED, False, [0.492501, 0.265027, 0.107168]),
    ],
)
def test_kto_golden_vectors(logratio: Tensor, desirable: bool, expected: list[float]) -> None:
    golden(preference.kto(logratio, torch.full((3,), desirable), z0=torch.tensor(0.3), beta=0.1), expected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "ratio_loss", "total"), [(-0.5, -1.0, 0.3203, 0.53203), (-1.0, -0.5, 1.294377, 1.129438)]
)
def test_orpo_golden_vectors(chosen: float, rejected: float, ratio_loss: float, total: float) -> None:
    means = torch.tensor([chosen]), torch.tensor([rejected])
    golden(preference.log_odds(*means).abs(), [0.974077])
    golden(preference.orpo(*means, weight=0.1), [total])
    golden((preference.orpo(*means, weight=0.1) + means[0]) / 0.1, [ratio_loss])


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.693147), (-0.5, 2.126928)])
def test_simpo_golden_vectors(margin: float, expected: float) -> None:
    golden(preference.simpo(torch.tensor([margin - 1.0]), torch.tensor([-1.0]), beta=2, gamma=1), [expected])


def test_bradley_terry_golden_vector() -> None:
    golden(bradley_terry(torch.tensor([0.0, 1.0, 2.0])), [0.693147, 0.313262, 0.126928])


def test_gae_golden_vector() -> None:
    advantages, returns = ppo.gae(torch.tensor([-0.01, 0.02, 0.5]), torch.tensor([0.1, 0.2, 0.3]), gamma=1.0, lam=0.95)
    golden(advantages, [0.3845, 0.31, 0.2])
    golden(returns, [0.4845, 0.51, 0.5])


def test_gae_is_the_discounted_sum_of_td_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    gamma, lam = 0.9, 0.7
    deltas = rewards + gamma * torch.cat([values[1:], torch.zeros(1)]) - values
    expected = torch.stack([sum((gamma * lam) ** k * deltas[t + k] for k in range(9 - t)) for t in range(9)])
    assert_close(ppo.gae(rewards, values, gamma, lam)[0], expected)


def test_gae_of_a_padded_batch_is_that_of_each_response() -> None:
    generator = torch.Generator().manual_seed(0)
    length_B = torch.tensor([4, 1, 7])
    rewards_R, values_R = torch.randn(2, 12, generator=generator)
    rewards_B_T, values_B_T = (ppo.padded_B_T(x, length_B) for x in (rewards_R, values_R))
    advantages, returns = (ppo.flat_R(x, length_B) for x in ppo.gae(rewards_B_T, values_B_T, 0.9, 0.7))
    sums = ppo.flat_R(ppo.discounted(rewards_B_T, 0.9), length_B)
    assert torch.equal(ppo.flat_R(rewards_B_T, length_B), rewards_R)
    for k, (r, v) in enumerate(zip(rewards_R.split([4, 1, 7]), values_R.split([4, 1, 7]), strict=True)):
        alone = ppo.gae(r, v, 0.9, 0.7)
        assert_close(advantages.split([4, 1, 7])[k], alone[0])
        assert_close(returns.split([4, 1, 7])[k], alone[1])
        assert_close(sums.split([4, 1, 7])[k], ppo.discounted(r, 0.9))


LOSSES = {
    "dpo": lambda c, r, label: preference.dpo(c - r, 0.3, label),
    "hinge": lambda c, r, label: preference.hinge(c - r, 0.3, label),
    "ipo": lambda c, r, label: preference.ipo(c - r, 0.3, label),
    "orpo": lambda c, r, label: preference.orpo(c, r, 0.3, label),
    "simpo": lambda c, r, label: preference.simpo(c, r, 2.0, 1.0, label),
    "bradley_terry": lambda c, r, label: bradley_terry(c - r, label),
}


@pytest.mark.parametrize("name", LOSSES)
def test_soft_label_is_the_mixture_of_both_hard_ones(name: str) -> None:
    loss = LOSSES[name]
    chosen, rejected = torch.tensor([-0.5, -2.0, -1.3]), torch.tensor([-1.0, -0.7, -1.3])
    label = torch.tensor([0.8, 0.25, 0.5])
    assert_close(
        loss(chosen, rejected, label), label * loss(chosen, rejected, 1.0) + (1 - label) * loss(rejected, chosen, 1.0)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_pulls_the_chosen_up_and_the_rejected_down(name: str) -> None:
    chosen = torch.tensor([-0.9, -1.2], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -0.7], dtype=torch.float64, requires_grad=True)
    up, down = torch.autograd.grad(LOSSES[name](chosen, rejected, 1.0).sum(), [chosen, rejected])
    assert (up < 0).all()
    assert (down > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    chosen = torch.tensor([-0.9, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.0, -0.7], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda c, r: LOSSES[name](c, r, 0.8), (chosen, rejected))


@pytest.mark.parametrize("name", ["dpo", "hinge", "bradley_terry"])
def test_extreme_margins_keep_loss_and_gradient_finite(name: str) -> None:
    chosen = torch.tensor([-1e4, 0.0, -3e4], requires_grad=True)
    loss = LOSSES[name](chosen, torch.tensor([0.0, -1e4, -3e4]), 0.9)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_kto_baseline_is_detached_and_never_negative() -> None:
    logratio = torch.tensor([0.4, -0.2], requires_grad=True)
    desirable = torch.tensor([True, False])
    z0 = torch.tensor(0.3, requires_grad=True)
    preference.kto(logratio, desirable, z0, beta=0.1).sum().backward()
    assert z0.grad is None
    assert logratio.grad is not None
    assert logratio.grad[0] < 0 < logratio.grad[1]
    negative, zero = (preference.kto(logratio, desirable, torch.tensor(z), beta=0.1) for z in (-5.0, 0.0))
    assert_close(negative, zero)


def test_kto_weights_scale_each_kind_alone() -> None:
    logratio, desirable = torch.tensor([0.4, -0.2]), torch.tensor([True, False])
    plain = preference.kto(logratio, desirable, 0.3, beta=0.1)
    weighted = preference.kto(logratio, desirable, 0.3, beta=0.1, weight_up=2.0, weight_down=3.0)
    assert_close(weighted, plain * torch.tensor([2.0, 3.0]))


def test_kl_estimators_are_right_on_a_categorical() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    sample = torch.multinomial(policy, 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    for estimator in ("k1", "k3"):
        each = ppo.kl_per_token(policy.log(), reference.log(), estimator)
        assert_close((policy * each).sum(), exact)
        drawn = each[sample]
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(len(drawn))
    assert_close(ppo.kl_per_token(policy.log(), reference.log(), "k2"), (policy / reference).log() ** 2 / 2)


def test_k3_is_never_negative_and_k1_is_for_some_tokens() -> None:
    logp, ref = -5 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (ppo.kl_per_token(logp, ref, "k3") >= 0).all()
    assert (ppo.kl_per_token(logp, ref, "k1") < 0).any()
    with pytest.raises(ValueError, match="k4"):
        ppo.kl_per_token(logp, ref, "k4")


def test_k3_varies_less_than_k1_near_the_reference() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.45, 0.33, 0.22], dtype=torch.float64)
    k1, k3 = (ppo.kl_per_token(policy.log(), reference.log(), k) for k in ("k1", "k3"))
    variance = [(policy * (k - (policy * k).sum()) ** 2).sum() for k in (k1, k3)]
    assert variance[1] < 0.1 * variance[0]


def test_score_arrives_at_the_last_token_of_its_response() -> None:
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    rewards = ppo.token_rewards(torch.tensor([1.0, -2.0]), kl, torch.tensor([2, 3]), kl_coef=0.5)
    assert_close(rewards, torch.tensor([-0.05, 0.9, -0.15, -0.2, -2.25]))


def test_adaptive_kl_steers_towards_the_target_with_a_clipped_error() -> None:
    controller = ppo.AdaptiveKL(coef=0.15, target=6.0, horizon=10_000)
    controller.update(sequence_kl=6.6, responses=64)
    assert controller.coef == pytest.approx(0.15 * (1 + 0.1 * 64 / 10_000))
    controller.coef = 0.15
    controller.update(sequence_kl=600.0, responses=64)
    assert controller.coef == pytest.approx(0.15 * (1 + 0.2 * 64 / 10_000))
    controller.coef = 0.15
    controller.update(sequence_kl=0.0, responses=64)
    assert controller.coef == pytest.approx(0.15 * (1 - 0.2 * 64 / 10_000))


def test_whitening_gives_unit_variance_and_can_keep_the_mean() -> None:
    values = 3 + 5 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred, kept = ppo.whiten(values), ppo.whiten(values, shift_mean=False)
    for whitened, mean in ((centred, torch.zeros_like(values.mean())), (kept, values.mean())):
        assert_close(whitened.std(unbiased=False), torch.ones_like(values.mean()))
        assert_close(whitened.mean(), mean)


def test_whitening_of_equal_values_is_finite() -> None:
    assert_close(ppo.whiten(torch.full((4,), 2.0)), torch.zeros(4))


def test_value_loss_is_half_the_larger_of_clipped_and_plain_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    value, old, target = torch.randn(3, 200, generator=generator).tolist()
    expected = []
    for v, o, t in zip(value, old, target, strict=True):
        clipped = min(max(v, o - 0.2), o + 0.2)
        expected.append(0.5 * max((v - t) ** 2, (clipped - t) ** 2))
    tensors = torch.tensor(value), torch.tensor(old), torch.tensor(target)
    assert_close(ppo.value_loss_R(*tensors, clip=0.2), torch.tensor(expected))
    assert_close(ppo.value_loss_R(*tensors, clip=None), (tensors[0] - tensors[2]) ** 2 / 2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "stopped"),
    [(1.3, 1.0, True), (0.7, -1.0, True), (1.3, -1.0, False), (0.7, 1.0, False), (1.1, 1.0, False), (0.9, -1.0, False)],
)
def test_policy_gradient_stops_outside_the_clip_only_on_the_favourable_side(
    ratio: float, advantage: float, stopped: bool
) -> None:
    old = torch.tensor([-1.0])
    logp = (old + math.log(ratio)).requires_grad_()
    ppo.policy_loss_R(logp, old, torch.tensor([advantage]), clip=0.2).sum().backward()
    assert_close(logp.grad, torch.tensor([0.0 if stopped else -ratio * advantage]))


def test_importance_is_truncated_and_weights_the_policy_loss() -> None:
    trainer, sampler = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -4.0, -0.5])
    importance = ppo.truncated_importance(trainer, sampler, cap=2.0)
    assert_close(importance, torch.tensor([1.0, 2.0, math.exp(-0.5)]))
    advantage = torch.tensor([1.0, -1.0, 0.5])
    plain = ppo.policy_loss_R(trainer, trainer, advantage, clip=0.2)
    assert_close(ppo.policy_loss_R(trainer, trainer, advantage, 0.2, importance), importance * plain)


def test_explained_variance_tells_a_perfect_critic_from_the_mean() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert ppo.explained_variance(returns, returns) == pytest.approx(1)
    assert ppo.explained_variance(torch.full((3,), float(returns.mean())), returns) == pytest.approx(0)
    assert math.isnan(ppo.explained_variance(returns, torch.ones(3)))


def test_leave_one_out_subtracts_the_mean_of_the_others_in_the_group() -> None:
    found = ppo.leave_one_out(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    assert_close(found, torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3.0]))


def test_group_relative_advantages_are_trls() -> None:
    score = torch.tensor([1.0, 2.0, 6.0, 0.5, 0.5, 0.5])
    expected = torch.cat([(score[:3] - 3) / (score[:3].std() + 1e-4), torch.zeros(3)])
    assert_close(ppo.group_relative(score, 3), expected)
    assert_close(ppo.group_relative(score, 3, scale=False), torch.tensor([-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_discounted_sums_of_what_is_to_come(gamma: float) -> None:
    rewards = torch.tensor([-0.1, 0.2, 0.0, 1.0])
    expected = [sum(gamma ** (k - t) * float(rewards[k]) for k in range(t, 4)) for t in range(4)]
    assert_close(ppo.discounted(rewards, gamma), torch.tensor(expected))


SCORE, LENGTH = torch.tensor([1.0, -0.5, 0.2, 0.8]), torch.tensor([2, 3, 1, 4])
KL = torch.linspace(-0.2, 0.4, 10)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce"])
def test_estimates_without_a_critic_against_direct_formulas(estimator: str) -> None:
    beta, ends = 0.3, LENGTH.cumsum(0).tolist()
    found = estimate(estimator, SCORE, KL, LENGTH, beta, group=2, whiten_advantages=False)
    assert found.return_R is None
    spans = list(zip([0, *ends], ends, strict=False))
    totals = [float(SCORE[i] - beta * KL[a:b].sum()) for i, (a, b) in enumerate(spans)]
    direct: list[float] = []
    for i, (a, b) in enumerate(spans):
        other = totals[i ^ 1]
        if estimator == "rloo":
            direct += [totals[i] - other] * (b - a)
        elif estimator == "grpo":
            pair = torch.tensor([totals[i], other])
            direct += [float((totals[i] - pair.mean()) / (pair.std() + 1e-4))] * (b - a)
        else:
            direct += [float(SCORE[i] - beta * KL[t:b].sum()) for t in range(a, b)]
    assert_close(found.advantage_R, torch.tensor(direct))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_of_a_group_does_not_depend_on_the_order_of_groups(estimator: str) -> None:
    def run(order: list[int]) -> dict[int, Tensor]:
        parts = KL.split(LENGTH.tolist())
        values = torch.linspace(0, 1, 10).split(LENGTH.tolist())
        found = estimate(
            estimator, SCORE[order], torch.cat([parts[i] for i in order]), LENGTH[order], 0.3, group=2,
            value_R=torch.cat([values[i] for i in order]),
        )  # fmt: skip
        return dict(zip(order, found.advantage_R.split(LENGTH[order].tolist()), strict=True))

    there, swapped = run([0, 1, 2, 3]), run([2, 3, 0, 1])
    for i in range(4):
        assert_close(there[i], swapped[i])


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="one of gae, grpo, rloo, reinforce"):
        estimate("gea", SCORE, KL, LENGTH, 0.1, group=2)


def test_a_rollout_larger_than_the_horizon_does_not_turn_the_kl_penalty_around() -> None:
    controller = ppo.AdaptiveKL(coef=0.2, target=6.0, horizon=200)
    controller.update(0.0, 1024)
    assert controller.coef == pytest.approx(0.1)
