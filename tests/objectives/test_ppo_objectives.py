"""Advantages, KL penalties and losses of reinforcement learning against closed forms and direct
formulas.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from prefloop.objectives import ppo
from prefloop.objectives.estimators import ESTIMATORS, estimate
from prefloop.objectives.ppo import KLPenalty


def test_gae_golden_vector() -> None:
    advantages, returns = ppo.gae(
        torch.tensor([-0.01, 0.02, 0.5]), torch.tensor([0.1, 0.2, 0.3]), gamma=1.0, lam=0.95
    )
    assert_close(advantages, torch.tensor([0.3845, 0.31, 0.2]))
    assert_close(returns, torch.tensor([0.4845, 0.51, 0.5]))


def test_gae_is_the_discounted_sum_of_td_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    gamma, lam = 0.9, 0.7
    deltas = rewards + gamma * torch.cat([values[1:], torch.zeros(1)]) - values
    expected = torch.stack(
        [sum((gamma * lam) ** k * deltas[t + k] for k in range(9 - t)) for t in range(9)]
    )
    assert_close(ppo.gae(rewards, values, gamma, lam)[0], expected)


def test_gae_of_a_padded_batch_is_that_of_each_response() -> None:
    generator = torch.Generator().manual_seed(0)
    length_B = torch.tensor([4, 1, 7])
    rewards_R, values_R = torch.randn(2, 12, generator=generator)
    rewards_B_T, values_B_T = (ppo.padded_B_T(x, length_B) for x in (rewards_R, values_R))
    advantages, returns = (
        ppo.flat_R(x, length_B) for x in ppo.gae(rewards_B_T, values_B_T, 0.9, 0.7)
    )
    sums = ppo.flat_R(ppo.discounted(rewards_B_T, 0.9), length_B)
    assert torch.equal(ppo.flat_R(rewards_B_T, length_B), rewards_R)
    for k, (r, v) in enumerate(
        zip(rewards_R.split([4, 1, 7]), values_R.split([4, 1, 7]), strict=True)
    ):
        alone = ppo.gae(r, v, 0.9, 0.7)
        assert_close(advantages.split([4, 1, 7])[k], alone[0])
        assert_close(returns.split([4, 1, 7])[k], alone[1])
        assert_close(sums.split([4, 1, 7])[k], ppo.discounted(r, 0.9))


def test_kl_estimators_are_right_on_a_categorical() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum()
    sample = torch.multinomial(
        policy, 100_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    for estimator in ("k1", "k3"):
        each = ppo.kl_per_token(policy.log(), reference.log(), estimator)
        assert_close((policy * each).sum(), exact)
        drawn = each[sample]
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(len(drawn))
    assert_close(
        ppo.kl_per_token(policy.log(), reference.log(), "k2"), (policy / reference).log() ** 2 / 2
    )


def test_k3_is_never_negative_and_k1_is_for_some_tokens() -> None:
    logp, ref = -5 * torch.rand(
        2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
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
    rewards = ppo.token_rewards(torch.tensor([1.0, -2.0]), 0.5 * kl, torch.tensor([2, 3]))
    assert_close(rewards, torch.tensor([-0.05, 0.9, -0.15, -0.2, -2.25]))


def test_adaptive_kl_steers_towards_the_target_with_a_clipped_error() -> None:
    for kl, error in ((6.6, 0.1), (600.0, 0.2), (0.0, -0.2)):
        adapted = KLPenalty(0.15, "loss", "k3").adapted(kl, 64, target=6.0, horizon=10_000)
        assert adapted == KLPenalty(adapted.coef, "loss", "k3")
        assert adapted.coef == pytest.approx(0.15 * (1 + error * 64 / 10_000))


def test_a_kl_penalty_counts_in_its_own_place_alone() -> None:
    logp, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    kl = ppo.kl_per_token(logp, reference, "k2")
    in_reward, in_loss = KLPenalty(0.3, "reward", "k2"), KLPenalty(0.3, "loss", "k2")
    assert_close(in_reward.in_reward(kl), 0.3 * kl)
    assert_close(in_loss.in_loss(logp, reference), 0.3 * kl)
    assert not in_reward.in_loss(logp, reference).any() and not in_loss.in_reward(kl).any()


def test_whitening_gives_unit_variance_and_can_keep_the_mean() -> None:
    values = 3 + 5 * torch.randn(
        500, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    centered, kept = ppo.whiten(values), ppo.whiten(values, shift_mean=False)
    for whitened, mean in ((centered, torch.zeros_like(values.mean())), (kept, values.mean())):
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
    [
        (1.3, 1.0, True),
        (0.7, -1.0, True),
        (1.3, -1.0, False),
        (0.7, 1.0, False),
        (1.1, 1.0, False),
        (0.9, -1.0, False),
    ],
)
def test_policy_gradient_stops_outside_the_clip_only_on_the_favorable_side(
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
    assert_close(
        ppo.policy_loss_R(trainer, trainer, advantage, 0.2, importance), importance * plain
    )


def test_explained_variance_tells_a_perfect_critic_from_the_mean() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert ppo.explained_variance(returns, returns) == pytest.approx(1)
    assert ppo.explained_variance(
        torch.full((3,), float(returns.mean())), returns
    ) == pytest.approx(0)
    assert math.isnan(ppo.explained_variance(returns, torch.ones(3)))


def test_leave_one_out_subtracts_the_mean_of_the_others_in_the_group() -> None:
    found = ppo.leave_one_out(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    assert_close(found, torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3.0]))


def test_group_relative_advantages_are_trls() -> None:
    score = torch.tensor([1.0, 2.0, 6.0, 0.5, 0.5, 0.5])
    expected = torch.cat([(score[:3] - 3) / (score[:3].std() + 1e-4), torch.zeros(3)])
    assert_close(ppo.group_relative(score, 3), expected)
    assert_close(
        ppo.group_relative(score, 3, scale=False), torch.tensor([-2.0, -1.0, 3.0, 0.0, 0.0, 0.0])
    )


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
    penalty = KLPenalty(beta, "reward", "k1")
    found = estimate(estimator, SCORE, KL, LENGTH, penalty, group=2, whiten_advantages=False)
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
            estimator,
            SCORE[order],
            torch.cat([parts[i] for i in order]),
            LENGTH[order],
            KLPenalty(0.3, "reward", "k1"),
            group=2,
            value_R=torch.cat([values[i] for i in order]),
        )
        return dict(zip(order, found.advantage_R.split(LENGTH[order].tolist()), strict=True))

    there, swapped = run([0, 1, 2, 3]), run([2, 3, 0, 1])
    for i in range(4):
        assert_close(there[i], swapped[i])


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="one of gae, grpo, rloo, reinforce"):
        estimate("gea", SCORE, KL, LENGTH, KLPenalty(0.1, "reward", "k1"), group=2)


def test_a_rollout_larger_than_the_horizon_does_not_turn_the_kl_penalty_around() -> None:
    adapted = KLPenalty(0.2, "reward", "k1").adapted(0.0, 1024, target=6.0, horizon=200)
    assert adapted.coef == pytest.approx(0.1)
