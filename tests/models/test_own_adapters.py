"""The methods that PEFT lacks, all alike: what they start from, learn, leave alone, save and
merge.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapted import PACK, load, logps, train, trained, two_experts
from tiny import plain
from torch.testing import assert_close

from prefloop.config import OptimConfig, SFTStageConfig
from prefloop.data.tokens import Tokens
from prefloop.errors import ModelError
from prefloop.models.adapters import card_of
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.pipeline.stages.sft import ROLE, SFT
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.held_out import SFTRow
from prefloop.training.loop import STATE

METHODS = ["bitfit", "bottleneck", "delta-lora", "lora-drop", "mole", "full"]
RUNS = [(method, precision) for method in METHODS for precision in card_of(method).precisions]


@pytest.fixture(scope="module")
def experts(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return two_experts(tmp_path_factory.mktemp("experts"), tiny_folder)


def made(
    folder: Path, method: str, experts: list[str], precision: str = "fp32", **settings: Any
) -> Backbone:
    options = {"mole": {"experts": experts}, "delta-lora": {"start": 1}}.get(method, {})
    return load(folder, method, precision, options=options, **settings)


@pytest.mark.parametrize(("method", "precision"), RUNS)
def test_a_role_starts_at_the_base_learns_and_leaves_everything_else_to_the_bit(
    method: str, precision: str, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = made(tiny_folder, method, experts, precision)
    base, digest = logps(backbone, None), backbone.frozen_digest()
    backbone.add_role("policy", seed=1)
    if method != "mole":
        # Full keeps float32 copies: a bfloat16 model's stream is rounded at other places.
        tolerance = (
            {"atol": 0.05, "rtol": 0.05} if precision == "bf16" else {"atol": 0.0, "rtol": 0.0}
        )
        assert_close(logps(backbone, "policy"), base, **tolerance)
    trained(backbone, "policy", 1)
    trained(backbone, "other", 2)
    assert backbone.frozen_digest() == digest
    before, other = logps(backbone, "policy"), logps(backbone, "other")
    assert (before - base).abs().max() > 1e-3
    train(backbone, "policy")
    with backbone.role("policy"):
        assert backbone.frozen_digest() == digest
    assert not torch.equal(logps(backbone, "policy"), before)
    assert torch.equal(logps(backbone, "other"), other)
    assert torch.equal(logps(backbone, None), base)


@pytest.mark.parametrize(("method", "precision"), RUNS)
def test_a_role_loaded_again_gives_identical_log_probs(
    method: str, precision: str, tiny_folder: Path, experts: list[str], tmp_path: Path
) -> None:
    first = made(tiny_folder, method, experts, precision)
    trained(first)
    first.save_role("policy", tmp_path / "adapter")
    second = made(tiny_folder, method, experts, precision)
    second.add_role("other-name", start=tmp_path / "adapter")
    assert torch.equal(logps(second, "other-name"), logps(first, "policy"))
    assert sorted(second.named_parameters("other-name")) == sorted(first.named_parameters("policy"))


@pytest.mark.parametrize(
    ("method", "precision"), [(m, p) for m, p in RUNS if card_of(m).merges and p != "bf16"]
)
def test_merged_weights_in_a_plain_model_give_the_roles_log_probs(
    method: str, precision: str, tiny_folder: Path, tiny_folders: Any, experts: list[str]
) -> None:
    folder = tiny_folders("llama-biased") if method == "bitfit" else tiny_folder
    backbone = made(folder, method, experts, precision)
    trained(backbone)
    weights = dict(backbone.merged_weights("policy"))
    model = plain(folder)
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    with backbone.role("policy"), torch.no_grad():
        expected = backbone.causal_lm(PACK.tokens_N[None]).logits
        assert_close(model(PACK.tokens_N[None]).logits, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["bottleneck", "mole"])
def test_what_no_plain_weights_can_do_is_not_merged(
    method: str, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = made(tiny_folder, method, experts)
    backbone.add_role("policy")
    with pytest.raises(ModelError, match=f"adapter {method}: no plain weights"):
        dict(backbone.merged_weights("policy"))
    assert len(dict(backbone.merged_weights(None))) == 2 * 9 + 2


@pytest.mark.parametrize("method", METHODS)
def test_dropping_a_role_restores_the_base_and_frees_its_memory(
    method: str, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = made(tiny_folder, method, experts)
    count = sum(p.numel() for p in backbone.model.parameters())
    base, names = logps(backbone, None), list(dict(backbone.model.named_parameters()))
    trained(backbone)
    backbone.drop_role("policy")
    assert torch.equal(logps(backbone, None), base)
    assert list(dict(backbone.model.named_parameters())) == names
    assert sum(p.numel() for p in backbone.model.parameters()) == count


@pytest.mark.parametrize("method", METHODS)
def test_activations_recomputed_in_the_backward_pass_belong_to_the_role(
    method: str, tiny_folder: Path, experts: list[str]
) -> None:
    found = []
    for recompute in ("none", "block"):
        backbone = made(tiny_folder, method, experts, gradient_checkpointing=recompute)
        trained(backbone)
        with backbone.role("policy", train=True):
            loss = response_logps_R(backbone, hidden_N_H(backbone, PACK), PACK).sum()
        found.append(torch.autograd.grad(loss, backbone.parameters("policy")))
    for stored, recomputed in zip(*found, strict=True):
        assert_close(recomputed, stored, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["bottleneck", "mole"])
def test_dropout_is_on_only_where_it_is_asked_for(
    method: str, tiny_folder: Path, experts: list[str]
) -> None:
    backbone = made(tiny_folder, method, experts, dropout=0.5)
    trained(backbone)
    scores = logps(backbone, "policy")
    assert torch.equal(logps(backbone, "policy"), scores)
    with backbone.role("policy", train=True, dropout=True):
        assert not torch.equal(hidden_N_H(backbone, PACK), hidden_N_H(backbone, PACK))
    assert torch.equal(logps(backbone, "policy"), scores)


# Supervised fine-tuning


@pytest.mark.parametrize(
    ("method", "precision"), [("bitfit", "nf4"), ("bottleneck", "bf16"), ("full", "fp32")]
)
def test_sft_trains_the_role_alone_and_goes_on_from_a_checkpoint_in_the_same_weights(
    method: str, precision: str, tiny_folder: Path, experts: list[str], tmp_path: Path
) -> None:
    ids = torch.randint(7, 400, (6, 20), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        SFTRow(Tokens(row, [False] * 8 + [True] * 12), tuple(row[:8]), f"r{i}")
        for i, row in enumerate(ids)
    ]
    optim = OptimConfig(learning_rate=1e-2, checkpoint_every=1)
    found = []
    for resumed in (False, True):
        backbone = made(tiny_folder, method, experts, precision)
        digest = backbone.frozen_digest()
        backbone.add_role(ROLE, seed=1)
        before = [p.detach().clone() for p in backbone.parameters(ROLE)]
        work = Work(
            "sft", tmp_path, SimpleNamespace(backbone=backbone, seed=0, emit=lambda **_: None)
        )  # type: ignore[arg-type]
        audit = Audit("sft")
        metrics = SFT(SFTStageConfig(batch_size=2, optim=optim))._train(work, audit, rows, [])
        assert metrics["steps"] == 3 and backbone.frozen_digest() == digest
        assert any(line.startswith("weights move") for line in audit.lines) != resumed
        assert any(
            not torch.equal(p, old)
            for p, old in zip(backbone.parameters(ROLE), before, strict=True)
        )
        found.append([p.detach().clone() for p in backbone.parameters(ROLE)])
        (work.checkpoints / "step-000003" / STATE).write_bytes(b"")
    for whole, again in zip(*found, strict=True):
        assert torch.equal(whole, again)
