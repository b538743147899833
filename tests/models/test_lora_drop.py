"""LoRA-drop: what a layer counts by, which layers share, what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PACK, load, logps, sample, train
from peft import PeftModel
from tiny import KINDS, add_random_role, plain, random_documents
from torch.testing import assert_close

from prefloop.data.packing import pack
from prefloop.models.adapters.lora_drop import LoRADrop
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H


def dropped(folder: Path, share: float) -> Backbone:
    backbone = load(folder, "lora-drop", options={"share": share, "steps": 3})
    backbone.add_role("policy")
    backbone.method.fit("policy", sample(backbone, "policy"))
    return backbone


def test_lora_drop_shares_one_lora_among_unimportant_layers_of_a_kind(
    tiny_folder: Path, tmp_path: Path
) -> None:
    backbone = dropped(tiny_folder, 0.01)  # one layer is enough for this share
    method = backbone.method
    assert isinstance(method, LoRADrop)
    groups = method.shared["policy"]
    assert 6 <= len(groups) <= 7 and all(
        len({n.rpartition(".")[2] for n in group}) == 1 for group in groups
    )
    layers = method.named_layers()
    for first, second in groups:
        assert layers[first].lora_A["policy"].weight is layers[second].lora_A["policy"].weight
        assert layers[first].lora_B["policy"].weight is layers[second].lora_B["policy"].weight
    assert len(backbone.parameters("policy")) == 2 * (14 - len(groups))
    train(backbone, "policy")
    backbone.save_role("policy", tmp_path / "adapter")
    again = load(tiny_folder, "lora-drop")
    again.add_role("policy", start=tmp_path / "adapter")
    assert isinstance(again.method, LoRADrop)
    assert sorted(again.method.shared["policy"]) == sorted(groups)
    assert len(again.parameters("policy")) == len(backbone.parameters("policy"))


def test_lora_drop_keeps_all_layers_for_the_whole_of_the_importance(tiny_folder: Path) -> None:
    backbone = dropped(tiny_folder, 1.0)
    assert isinstance(backbone.method, LoRADrop)
    assert backbone.method.shared["policy"] == []
    assert len(backbone.parameters("policy")) == 2 * 14


def test_lora_drop_keeps_the_fewest_layers_that_reach_the_share(tiny_folder: Path) -> None:
    method = load(tiny_folder, "lora-drop", options={"share": 0.8}).method
    assert isinstance(method, LoRADrop)
    importance = dict.fromkeys(method.named_layers(), 0.0)
    names = [n for n in importance if n.endswith(("q_proj", "up_proj"))]
    importance |= dict(zip(names, (5.0, 3.0, 1.0, 1.0), strict=True))
    kept = importance.keys() - {n for group in method.groups(importance) for n in group}
    # The two of 8 of 10; the other layer of a kept one's kind has nobody to share with.
    assert kept == set(names[:2]) | {
        n for n in names[2:] if n.rpartition(".")[2] in {m.rpartition(".")[2] for m in names[:2]}
    }


def test_lora_drop_measures_the_mean_squared_norm_of_each_layers_output(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "lora-drop")
    add_random_role(backbone, "policy")
    method = backbone.method
    assert isinstance(method, LoRADrop)
    name = "model.layers.0.self_attn.q_proj"
    logps(backbone, "policy")  # the first pass of all tries kernels, on tokens of its own
    found = method._measure("policy", sample(backbone, "policy"))[name]
    layer, block = method.named_layers()[name], backbone.causal_lm.model.layers[0]
    inputs = []
    for seed in range(3):
        batch = pack(random_documents([(6, [8, 7]), (5, [9])], seed))
        inputs.append(block.input_layernorm(backbone.causal_lm.model.embed_tokens(batch.tokens_N)))
    a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    out = 2.0 * torch.cat(inputs) @ a.T @ b.T
    assert found == pytest.approx(float(out.square().sum(-1).mean()), rel=1e-4)


def test_lora_drops_short_training_gives_every_layer_an_output_and_leaves_no_trace(
    tiny_folder: Path,
) -> None:
    backbone = load(tiny_folder, "lora-drop", options={"share": 1.0})
    base = logps(backbone, None)
    backbone.add_role("policy")
    method, seen = backbone.method, {}
    assert isinstance(method, LoRADrop)
    groups = method.groups
    method.groups = lambda importance: groups(seen.setdefault("importance", importance))  # type: ignore[method-assign]
    before = {n: p.detach().clone() for n, p in backbone.named_parameters("policy").items()}
    method.fit("policy", sample(backbone, "policy"))
    assert len(seen["importance"]) == 14 and min(seen["importance"].values()) > 0
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters("policy").items())
    assert torch.equal(logps(backbone, "policy"), base)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", KINDS)
def test_lora_drops_short_training_has_the_models_own_loss(kind: str, tiny_folders: Any) -> None:
    """Of one document without branches it is that of transformers: scales and soft caps of the
    logits, kinds of layers.
    """
    document = random_documents([(9, [10])])
    backbone = load(tiny_folders(kind), "lora-drop", kind=kind)
    backbone.add_role("policy")
    method = backbone.method
    assert isinstance(method, LoRADrop)
    ids = torch.tensor([document[0].prompt_ids + document[0].responses_ids[0]])
    logps(backbone, "policy")  # the first pass of all tries kernels
    with method._language_loss(backbone.parameters("policy")) as losses, backbone.role("policy"):
        hidden_N_H(backbone, pack(document))
    theirs = plain(tiny_folders(kind), kind)(ids, labels=ids).loss
    assert_close(losses[-1].detach(), theirs.detach(), atol=1e-5, rtol=1e-5)
    method.fit("policy", sample(backbone, "policy"))


def test_peft_loads_what_lora_drop_saves(tiny_folder: Path, tmp_path: Path) -> None:
    backbone = dropped(tiny_folder, 0.3)
    train(backbone, "policy")
    backbone.save_role("policy", tmp_path / "adapter")
    model = PeftModel.from_pretrained(plain(tiny_folder), str(tmp_path / "adapter"))
    with backbone.role("policy"), torch.no_grad():
        expected = backbone.causal_lm(PACK.tokens_N[None]).logits
        assert_close(model(PACK.tokens_N[None]).logits, expected, atol=1e-5, rtol=1e-5)
