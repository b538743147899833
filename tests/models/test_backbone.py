"""Roles on one backbone: independent, saved and loaded without a bit lost, and the frozen weights
frozen.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import add_random_role, attention_of, load, plain, random_documents, tiny_model
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone, checksum
from prefloop.models.forward import hidden_N_H, response_logps_R

PACK = pack(random_documents([(10, [8, 5]), (4, [12])]))


@pytest.fixture
def backbone(tiny_folder: Path) -> Backbone:
    return load(tiny_folder)


def logps(backbone: Backbone, role: str | None) -> Tensor:
    with backbone.role(role):
        return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)


def train(backbone: Backbone, role: str, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(backbone.parameters(role), lr=1e-2)
    for _ in range(steps):
        with backbone.role(role, train=True):
            optimizer.zero_grad()
            (-response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)).mean().backward()
            optimizer.step()


def test_a_fresh_role_changes_nothing_and_a_trained_one_does(backbone: Backbone) -> None:
    backbone.add_role("policy")
    before = logps(backbone, "policy")
    assert_close(before, logps(backbone, None))
    train(backbone, "policy")
    assert (logps(backbone, "policy") - before).abs().max() > 1e-3


def test_training_one_role_leaves_the_others_and_the_base_to_the_bit(backbone: Backbone) -> None:
    for seed, role in enumerate(["policy", "reference", "reward/0", "reward/1"]):
        add_random_role(backbone, role, seed)
    others = ["reference", "reward/0", "reward/1", None]
    before = [logps(backbone, role) for role in others]
    assert not torch.allclose(before[1], before[2])
    train(backbone, "policy")
    for role, old in zip(others, before, strict=True):
        assert torch.equal(logps(backbone, role), old)


def test_dropping_a_role_leaves_the_others(backbone: Backbone) -> None:
    add_random_role(backbone, "policy", 1)
    add_random_role(backbone, "reward/0", 2)
    before = logps(backbone, "policy")
    count = sum(p.numel() for p in backbone.model.parameters())
    backbone.drop_role("reward/0")
    assert torch.equal(logps(backbone, "policy"), before)
    assert sum(p.numel() for p in backbone.model.parameters()) == count - sum(
        p.numel() for p in backbone.parameters("policy")
    )


def test_the_same_seed_starts_the_same_adapter_and_global_random_state_is_untouched(
    backbone: Backbone,
) -> None:
    state = torch.get_rng_state()
    for role, seed in (("one", 3), ("same", 3), ("other", 4)):
        backbone.add_role(role, seed=seed)
    first, second, third = (backbone.parameters(role) for role in ("one", "same", "other"))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(first, third, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_reference_copied_from_the_saved_sft_adapter_equals_it_to_the_bit(
    backbone: Backbone, tmp_path: Path
) -> None:
    add_random_role(backbone, "policy")
    backbone.save_role("policy", tmp_path / "sft")
    backbone.add_role("reference", start=tmp_path / "sft")
    at_start = logps(backbone, "policy")
    assert torch.equal(logps(backbone, "reference"), at_start)
    train(backbone, "policy")
    assert torch.equal(logps(backbone, "reference"), at_start)
    assert not torch.equal(logps(backbone, None), at_start)


def test_scoring_a_role_is_without_gradients_and_dropout_whatever_came_before(
    backbone: Backbone,
) -> None:
    backbone.add_role("policy")
    with backbone.role("policy", train=True):
        assert all(p.requires_grad for p in backbone.parameters("policy"))
        assert torch.is_grad_enabled()
    for role in ("policy", None):
        with backbone.role(role):
            assert not any(m.training for m in backbone.model.modules())
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    with pytest.raises(KeyError), backbone.role("policy"):
        raise KeyError
    assert torch.is_grad_enabled()


def test_activations_recomputed_after_the_block_belong_to_its_role(tiny_folder: Path) -> None:
    found = []
    for recompute in ("none", "block"):
        backbone = load(tiny_folder, gradient_checkpointing=recompute)
        add_random_role(backbone, "policy", 1)
        add_random_role(backbone, "reference", 2)
        logps(backbone, "reference")
        with backbone.role("policy", train=True):
            loss = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()
        found.append(torch.autograd.grad(loss, backbone.parameters("policy")))
    for stored, *recomputed in zip(*found, strict=True):
        for grad in recomputed:
            assert_close(grad, stored)


def test_a_scoring_pass_changes_neither_later_gradients_nor_log_probs_in_4_bit(
    tiny_folder: Path,
) -> None:
    """bitsandbytes repacks 4-bit weights for inference on some CPUs, for a kernel that has no
    backward.
    """
    found = []
    for score_first in (False, True):
        backbone = load(tiny_folder, precision="nf4")
        add_random_role(backbone, "policy")
        digest = backbone.frozen_digest()
        if score_first:
            logps(backbone, "policy")
            assert backbone.frozen_digest() == digest
        with backbone.role("policy", train=True):
            scores = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)
            found.append(
                [scores, *torch.autograd.grad(scores.sum(), backbone.parameters("policy"))]
            )
    for fresh, later in zip(*found, strict=True):
        assert torch.equal(later, fresh)


def test_only_the_trained_role_gets_gradients(backbone: Backbone) -> None:
    add_random_role(backbone, "policy", 1)
    add_random_role(backbone, "reference", 2)
    with backbone.role("reference", train=True):
        pass
    with backbone.role("policy", train=True):
        response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum().backward()
        asked = {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    received = {name for name, p in backbone.model.named_parameters() if p.grad is not None}
    assert received == asked
    assert len(received) == len(backbone.parameters("policy")) == 2 * 2 * 7
    assert all(".policy." in name for name in received)


def test_adapter_dropout_is_on_only_where_it_is_asked_for(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "policy")
    scores = [logps(backbone, "policy") for _ in range(2)]
    assert torch.equal(*scores)
    with backbone.role("policy", train=True):
        assert torch.equal(
            logps_now(backbone), scores[0]
        )  # a gradient pass whose log-probs are compared
    with backbone.role("policy", train=True, dropout=True):
        assert not torch.equal(logps_now(backbone), logps_now(backbone))


def logps_now(backbone: Backbone) -> torch.Tensor:
    return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).detach()


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_a_role_loaded_again_gives_identical_log_probs(
    precision: str, tiny_folder: Path, tmp_path: Path
) -> None:
    first = load(tiny_folder, precision=precision)
    add_random_role(first, "policy")
    first.save_role("policy", tmp_path / "adapter")
    second = load(tiny_folder, precision=precision)
    second.add_role("other-name", start=tmp_path / "adapter")
    assert torch.equal(logps(second, "other-name"), logps(first, "policy"))


def test_a_saved_role_is_an_adapter_that_peft_loads(
    backbone: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    add_random_role(backbone, "policy")
    backbone.save_role("policy", tmp_path / "adapter")
    model = PeftModel.from_pretrained(plain(tiny_folder), str(tmp_path / "adapter"))
    with backbone.role("policy"), torch.no_grad():
        expected = backbone.causal_lm(PACK.tokens_N[None]).logits
        assert_close(model(PACK.tokens_N[None]).logits, expected, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("nf4", 1e-4)])
@pytest.mark.parametrize("role", ["policy", None])
def test_merged_weights_in_a_plain_model_give_the_adapters_logits(
    kind: str, precision: str, tolerance: float, role: str | None, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model", kind)
    backbone = load(folder, kind, precision=precision)
    add_random_role(backbone, "policy")
    weights = dict(backbone.merged_weights(role))
    # Weights of another seed: whatever merged_weights left out would show.
    fresh = plain(tiny_model(tmp_path / "stranger", kind, seed=1), kind)
    lacking, strange = fresh.load_state_dict(weights, strict=False)
    assert not strange
    assert set(lacking) <= {"lm_head.weight"}  # tied to the embeddings
    with backbone.role(role), torch.no_grad():
        expected = backbone.causal_lm(PACK.tokens_N[None]).logits
        assert_close(fresh(PACK.tokens_N[None]).logits, expected, atol=tolerance, rtol=tolerance)


def test_merging_leaves_the_backbone_as_it_was(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, precision="nf4")
    add_random_role(backbone, "policy")
    before = backbone.frozen_digest(), logps(backbone, "policy")
    list(backbone.merged_weights("policy"))
    assert backbone.frozen_digest() == before[0]
    assert torch.equal(logps(backbone, "policy"), before[1])


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_frozen_digest_ignores_training_and_notices_one_changed_weight(
    precision: str, tiny_folder: Path
) -> None:
    backbone = load(tiny_folder, precision=precision)
    bare = backbone.frozen_digest()
    backbone.add_role("policy")
    backbone.add_role("reward/0")
    train(backbone, "policy", steps=3)
    assert backbone.frozen_digest() == bare
    weight = next(p for n, p in backbone.model.named_parameters() if "base_layer" in n)
    with torch.no_grad():
        weight.view(-1)[7] += 1
    assert backbone.frozen_digest() != bare


@pytest.mark.parametrize("other", [{"r": 8}, {"alpha": 16}])
def test_an_adapter_of_another_shape_is_refused_and_leaves_no_role(
    other: dict[str, int], tiny_folder: Path, tmp_path: Path
) -> None:
    made = load(tiny_folder, **other)
    made.add_role("policy")
    made.save_role("policy", tmp_path / "other")
    backbone = load(tiny_folder)
    with pytest.raises(ModelError, match=r"adapter in other does not fit backbone\.adapter"):
        backbone.add_role("policy", start=tmp_path / "other")
    assert backbone.roles == set()


def test_a_folder_without_an_adapter_is_a_model_error(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter"):
        backbone.add_role("policy", start=tmp_path)
    assert backbone.roles == set()


def test_max_length_beyond_the_models_context_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"max_length is 513, but tiny-llama has a context of 512"):
        load(tiny_folder, max_length=513)


def test_a_folder_that_holds_no_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"the configuration in .* cannot be used: Unrecognized model"
    ):
        load(tmp_path)


def test_the_model_is_loaded_with_the_attention_that_was_asked_for(tiny_folder: Path) -> None:
    assert load(tiny_folder, attention="eager").causal_lm.config._attn_implementation == "eager"
    assert attention_of("llama") == "sdpa"


def test_state_space_layers_are_refused_because_branches_would_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tmp_path / "model", "qwen2")
    original = AutoModelForCausalLM.from_pretrained

    def hybrid(*args: object, **kwargs: object) -> object:
        model, told = original(*args, **kwargs)
        model.config.layer_types = ["linear_attention", "full_attention"]
        return model, told

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", hybrid)
    with pytest.raises(ModelError, match="packed branches need plain attention"):
        load(folder)


def test_the_checksum_of_a_gpus_weights_notices_one_changed_byte_and_two_swapped_words() -> None:
    content = torch.randint(0, 256, (1003,), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    whole = checksum(content)
    assert whole == checksum(torch.nn.functional.pad(content, (0, 1))) != checksum(content[:1000])
    assert len(whole) == 8 and checksum(content.clone()) == whole
    for place in range(0, 1003, 17):
        other = content.clone()
        other[place] ^= 1
        assert checksum(other) != whole, place
    swapped = torch.cat([content[4:8], content[:4], content[8:]])
    assert checksum(swapped) != whole


def test_a_role_that_stops_learning_just_before_its_first_step_is_not_run_stale(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused optimizers leave the versions as they were, and nothing else has stepped in this
    process.
    """
    monkeypatch.setattr("prefloop.models.fused.projections._steps", 0)
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    add_random_role(backbone, "value", seed=2)
    optimizer = torch.optim.AdamW(backbone.parameters("policy"), lr=0.1, fused=True)
    before = logps(backbone, "policy")
    with backbone.role("policy", train=True):
        response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum().backward()
    with backbone.role("value", train=True):
        hidden_N_H(backbone, PACK)
    optimizer.step()
    found = logps(backbone, "policy")
    backbone._forget("policy")
    assert torch.equal(found, logps(backbone, "policy")) and not torch.equal(found, before)
