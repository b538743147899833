"""Rollouts of the transformers engine: reproducible, ended properly, and with the log-probs that
the trainer computes.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sampled import engine_of, prompts_ids
from tiny import add_random_role, load, tiny_model
from torch.testing import assert_close

from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.data.packing import Document, pack
from prefloop.errors import EngineError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.rollouts.check import check
from prefloop.rollouts.engine import Rollout, TransformersEngine, divisor
from prefloop.rollouts.start import start


def policy_of(folder: Path, kind: str = "llama", **settings: str) -> Backbone:
    """An adapter that likes to end its turn, so that some responses finish."""
    backbone = load(folder, kind, **settings)
    add_random_role(backbone, "policy")
    with torch.no_grad():
        backbone.causal_lm.get_input_embeddings().weight[backbone.chat.stop_id] *= 3
    return backbone


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Backbone:
    return policy_of(tiny_folder)


@pytest.fixture(scope="module")
def rollouts(backbone: Backbone) -> list[Rollout]:
    return engine_of(backbone).generate(prompts_ids(backbone), n=5, seed=3)


def test_responses_come_grouped_by_prompt(rollouts: list[Rollout]) -> None:
    assert [r.prompt for r in rollouts] == [0] * 5 + [1] * 5 + [2] * 5


def test_the_same_seed_and_policy_give_the_same_rollouts(
    backbone: Backbone, rollouts: list[Rollout]
) -> None:
    torch.rand(3)
    assert engine_of(backbone).generate(prompts_ids(backbone), n=5, seed=3) == rollouts
    other = engine_of(backbone).generate(prompts_ids(backbone), n=5, seed=4)
    assert [r.token_ids for r in other] != [r.token_ids for r in rollouts]
    assert len({tuple(r.token_ids) for r in rollouts}) == len(rollouts)


def test_sampling_leaves_the_global_random_state_alone(backbone: Backbone) -> None:
    state = torch.get_rng_state()
    engine_of(backbone).generate(prompts_ids(backbone), n=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_finished_response_ends_in_its_only_stop_token_and_a_cut_one_is_full_length(
    backbone: Backbone, rollouts: list[Rollout]
) -> None:
    stop = backbone.chat.stop_id
    assert {r.finished for r in rollouts} == {True, False}
    for r in rollouts:
        assert len(r.logps) == len(r.token_ids) <= 24
        assert r.token_ids.count(stop) == int(r.finished)
        assert (r.token_ids[-1] == stop) if r.finished else len(r.token_ids) == 24


def assert_logps_are_the_trainers(
    backbone: Backbone,
    rollouts: list[Rollout],
    temperature: float,
    prompts: list[list[int]] | None = None,
) -> None:
    documents = []
    for i, prompt in enumerate(prompts or prompts_ids(backbone)):
        keys = [k for k, r in enumerate(rollouts) if r.prompt == i]
        documents.append(Document(prompt, [rollouts[k].token_ids for k in keys], keys))
    p = pack(documents)
    with backbone.role("policy"):
        trainer = response_logps_R(backbone, hidden_N_H(backbone, p), p, temperature)
    sampler = torch.tensor([x for key in p.keys for x in rollouts[key].logps])
    assert_close(sampler, trainer, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "mistral"])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_sampler_log_probs_equal_the_trainers(
    kind: str, temperature: float, tiny_folders: Callable[[str], Path]
) -> None:
    """Longer than the tiny models' attention window, where they have one."""
    backbone = policy_of(tiny_folders(kind), kind)
    rollouts = engine_of(backbone, temperature=temperature).generate(
        prompts_ids(backbone), n=3, seed=0
    )
    assert_logps_are_the_trainers(backbone, rollouts, temperature)


def test_4_bit_sampler_log_probs_equal_the_trainers(tiny_folder: Path) -> None:
    backbone = policy_of(tiny_folder, precision="nf4")
    rollouts = engine_of(backbone).generate(prompts_ids(backbone), n=3, seed=0)
    assert_logps_are_the_trainers(backbone, rollouts, 0.7)


def test_the_models_own_generation_defaults_do_not_bend_the_distribution(tmp_path: Path) -> None:
    """Qwen2.5 ships a repetition penalty: it would sample from another policy than the one whose
    log-probs are trained on.
    """
    plain = policy_of(tiny_model(tmp_path / "plain"))
    opinionated = policy_of(
        tiny_model(
            tmp_path / "opinionated",
            repetition_penalty=5.0,
            min_p=0.5,
            no_repeat_ngram_size=2,
            top_k=3,
            do_sample=True,
        )
    )
    expected, found = (
        engine_of(b).generate(prompts_ids(b), n=3, seed=0) for b in (plain, opinionated)
    )
    assert found == expected


def test_sampled_tokens_follow_the_softmax_at_the_sampling_temperature(backbone: Backbone) -> None:
    (prompt, *_) = prompts_ids(backbone)
    n, temperature = 2000, 0.5
    sampled = engine_of(
        backbone, temperature=temperature, max_new_tokens=1, max_num_seqs=500
    ).generate([prompt], n=n, seed=0)
    with backbone.role("policy"):
        expected = (backbone.causal_lm(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(
            -1
        )
    counts = torch.bincount(
        torch.tensor([r.token_ids[0] for r in sampled]), minlength=len(expected)
    )
    top = expected.topk(3).indices
    deviation = (counts[top] / n - expected[top]).abs() / (
        expected[top] * (1 - expected[top]) / n
    ).sqrt()
    assert (deviation < 4).all()
    assert (expected[top] > 0.02).all()


def test_the_policy_handed_over_last_is_the_one_that_samples(tiny_folder: Path) -> None:
    backbone = policy_of(tiny_folder)
    engine = engine_of(backbone)
    first = engine.generate(prompts_ids(backbone), n=1, seed=0)
    engine.load_policy(None)
    assert engine.generate(prompts_ids(backbone), n=1, seed=0) != first
    engine.load_policy("policy")
    assert engine.generate(prompts_ids(backbone), n=1, seed=0) == first


def test_pad_equal_to_the_stop_token_changes_no_log_prob(tmp_path: Path) -> None:
    backbone = policy_of(tiny_model(tmp_path / "model", tokenizer="pad-is-eos"))
    assert backbone.chat.pad_id == backbone.chat.stop_id
    rollouts = engine_of(backbone).generate(prompts_ids(backbone), n=4, seed=0)
    assert {r.finished for r in rollouts} == {True, False}
    assert_logps_are_the_trainers(backbone, rollouts, 0.7)


def test_progress_counts_every_response(backbone: Backbone) -> None:
    steps: list[int] = []
    engine_of(backbone, max_new_tokens=2).generate(
        prompts_ids(backbone), n=3, seed=0, advance=steps.append
    )
    assert sum(steps) == 9


def test_engines_are_chosen_by_name_and_unknown_ones_refused(backbone: Backbone) -> None:
    assert isinstance(start("transformers", backbone, GenerationConfig()), TransformersEngine)
    with pytest.raises(
        EngineError, match="unknown rollout engine 'tgi': vllm, server or transformers"
    ):
        check("tgi", GenerationConfig(), BackboneConfig())


def test_at_temperature_0_the_likeliest_token_comes_with_the_models_own_log_prob(
    backbone: Backbone,
) -> None:
    ids = prompts_ids(backbone)
    greedy = engine_of(backbone, temperature=0).generate(ids, n=1, seed=3)
    assert greedy == engine_of(backbone).generate(ids, n=1, seed=4, temperature=0.0), (
        "whatever the seed and the run's own"
    )
    for rollout in greedy:
        there = pack([Document(ids[rollout.prompt], [rollout.token_ids], [0])])
        with torch.no_grad(), backbone.role("policy"):
            whole = torch.tensor([[*ids[rollout.prompt], *rollout.token_ids]])
            logits_T_V = (
                backbone.causal_lm(whole).logits[0, len(ids[rollout.prompt]) - 1 : -1].float()
            )
            ours = response_logps_R(backbone, hidden_N_H(backbone, there), there, divisor(0.0))
        assert logits_T_V.argmax(-1).tolist() == rollout.token_ids
        assert_close(torch.tensor(rollout.logps), ours, atol=1e-4, rtol=0)


def test_a_temperature_given_with_the_call_is_the_one_that_is_sampled_at(
    backbone: Backbone,
) -> None:
    ids = prompts_ids(backbone)
    assert engine_of(backbone).generate(ids, 2, 3, temperature=1.3) == engine_of(
        backbone, temperature=1.3
    ).generate(ids, 2, 3)
