"""Virtual tokens: what PEFT's own model computes with the same file, for packs, cached generation
and learning.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import random_documents
from transformers import AutoModelForCausalLM

from prefloop.artifacts.adapter_config import described_shape
from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.data.packing import pack
from prefloop.errors import ModelError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, logits_C_V, response_logps_R, rows_of

METHODS = ["prompt", "p-tuning", "prefix", "p-tuning-v2"]


def load(
    folder: Path, method: str, precision: str = "fp32", checkpointing: str = "none"
) -> Backbone:
    adapter = AdapterConfig(method=method, options={"tokens": 5})
    config = BackboneConfig(
        model=folder.name,
        precision=precision,
        gradient_checkpointing=checkpointing,
        max_length=128,
        chat_template="chatml",
        adapter=adapter,
    )
    return Backbone.load(config, folder)


PACK = pack(random_documents([(7, [5, 9]), (3, [4]), (6, [2, 3, 8])]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_a_pack_comes_out_as_peft_runs_its_rows(
    tiny_folders, tmp_path: Path, method: str, kind: str
) -> None:
    folder = tiny_folders(kind)
    backbone = load(folder, method)
    backbone.add_role("policy", seed=1)
    backbone.save_role("policy", tmp_path / "saved")
    with backbone.role("policy"):
        logits = logits_C_V(backbone, hidden_N_H(backbone, PACK), 1.0)
    with backbone.role(None):
        bare = logits_C_V(backbone, hidden_N_H(backbone, PACK), 1.0)
    assert (
        described_shape(json.loads((tmp_path / "saved" / "adapter_config.json").read_text()))[
            "method"
        ]
        == method
    )
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = PeftModel.from_pretrained(theirs, str(tmp_path / "saved")).eval()
    assert not torch.allclose(logits, bare, atol=1e-2)
    for row in rows_of(PACK):
        with torch.no_grad():
            expected = model(input_ids=PACK.tokens_N[row][None]).logits[0, -len(row) :]
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("method", ["prompt", "p-tuning-v2"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_start_is_the_model_after_words(
    tiny_folders, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).flip(0))
    backbone = load(tiny_folders(kind), method)
    backbone.add_role("policy", seed=1)
    count = len(backbone.causal_lm.get_input_embeddings().weight)
    words = torch.arange(count - 5, count).flip(0)
    with backbone.role("policy"):
        logits = logits_C_V(backbone, hidden_N_H(backbone, PACK), 1.0)
    for row in rows_of(PACK):
        with backbone.role(None), torch.no_grad():
            expected = backbone.causal_lm(torch.cat([words, PACK.tokens_N[row]])[None]).logits[
                0, 5:
            ]
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("checkpointing", ["none", "block"])
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
@pytest.mark.parametrize("method", METHODS)
def test_it_learns_saves_and_goes_on_and_leaves_the_rest_alone(
    tiny_folder: Path, tmp_path: Path, method: str, precision: str, checkpointing: str
) -> None:
    backbone = load(tiny_folder, method, precision, checkpointing)
    frozen = backbone.frozen_digest()
    backbone.add_role("policy", seed=1)
    backbone.add_role("reference", seed=2, frozen=True)

    def logps(role: str | None, train: bool = False) -> torch.Tensor:
        with backbone.role(role, train=train):
            return response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK)

    other, bare, first = logps("reference"), logps(None), logps("policy")
    optimizer = torch.optim.AdamW(backbone.parameters("policy"), lr=3e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = -logps("policy", train=True).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters("policy"))
    assert losses == sorted(losses, reverse=True) and not torch.equal(first, logps("policy"))
    torch.testing.assert_close(logps("reference"), other, rtol=0, atol=0)
    torch.testing.assert_close(logps(None), bare, rtol=0, atol=0)
    assert backbone.frozen_digest() == frozen
    backbone.save_role("policy", tmp_path / "saved")
    backbone.add_role("again", start=tmp_path / "saved")
    torch.testing.assert_close(logps("again"), logps("policy"), rtol=0, atol=0)
    assert [p.shape for p in backbone.parameters("again")] == [
        p.shape for p in backbone.parameters("policy")
    ]
    backbone.drop_role("again")
    torch.testing.assert_close(logps(None), bare, rtol=0, atol=0)


def test_recomputed_blocks_give_the_same_gradients(tiny_folder: Path) -> None:
    found = []
    for checkpointing in ("none", "block"):
        backbone = load(tiny_folder, "prompt", checkpointing=checkpointing)
        backbone.add_role("policy", seed=1)
        with backbone.role("policy", train=True):
            loss = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()
        found.append(torch.autograd.grad(loss, backbone.parameters("policy"))[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("method", METHODS)
def test_generation_with_a_cache_follows_the_log_probs(tiny_folder: Path, method: str) -> None:
    backbone = load(tiny_folder, method)
    backbone.add_role("policy", seed=1)
    prompts = torch.tensor([[5, 9, 11, 3], [2, 2, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])  # padded on the left
    with backbone.role("policy"):
        out = backbone.causal_lm.generate(
            input_ids=prompts,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            use_cache=True,
            pad_token_id=2,
            eos_token_id=None,
        )
        for row, real in zip(out, mask, strict=True):
            ids = row[4 - int(real.sum()) :]
            logits = backbone.causal_lm(input_ids=ids[None]).logits[0]
            assert logits[-7:-1].argmax(-1).tolist() == ids[-6:].tolist()


def test_a_file_of_another_size_or_of_peft_alone(tiny_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    backbone = load(tiny_folder, "p-tuning")
    backbone.add_role("policy", seed=1)
    backbone.save_role("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "P_TUNING"
    save_file(
        {"prompt_embeddings": tensors["prompt_embeddings"]}, tmp_path / "adapter_model.safetensors"
    )
    backbone.add_role("theirs", start=tmp_path)
    torch.testing.assert_close(
        backbone.method.embeddings("theirs"), backbone.method.embeddings("policy")
    )
    save_file(
        {"prompt_embeddings": tensors["prompt_embeddings"][:3].clone()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match="number of virtual tokens"):
        backbone.add_role("short", start=tmp_path)
