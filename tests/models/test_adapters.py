"""Every adapter method of PEFT's: learns from each kind of loss, saves, reloads and merges without
changing what it computes, and is what its paper says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import ALPHA, DOCUMENTS, LINEAR, PACK, R, load, logps
from peft import PeftModel
from tiny import plain
from torch import Tensor
from torch.testing import assert_close

from prefloop.config import OptimConfig
from prefloop.config.adapters import CARDS
from prefloop.data.packing import Pack
from prefloop.errors import ModelError
from prefloop.models.adapters.pissa import Halves
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.models.fused.lora import Weight
from prefloop.models.heads import ScalarHead
from prefloop.models.merge import save_merged
from prefloop.objectives.ppo import policy_loss_R
from prefloop.objectives.preference import dpo
from prefloop.objectives.reward import bradley_terry
from prefloop.training.adapter_hooks import Learner, fit
from prefloop.training.loop import Loop

EXACT = 1e-5
METHODS = [
    card.name
    for card in CARDS.values()
    if not card.ours and card.name != "lora-drop" and "tokens" not in card.options
]
"""Those that are PEFT's layers."""


def summed_B(logp_R: Tensor) -> Tensor:
    return torch.stack([part.sum() for part in logp_R.split([8, 5, 12, 6])])


def sft(backbone: Backbone, role: str, head: ScalarHead, pack: Pack) -> Tensor:
    with backbone.role(role, train=True):
        return -response_logps_R(backbone, hidden_N_H(backbone, pack), pack).sum()


def reward(backbone: Backbone, role: str, head: ScalarHead, pack: Pack) -> Tensor:
    with backbone.role(role, train=True):
        score_B = head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))
    return bradley_terry(score_B[::2] - score_B[1::2]).sum()


def preference(backbone: Backbone, role: str, head: ScalarHead, pack: Pack) -> Tensor:
    reference_B = summed_B(logps(backbone, None))
    with backbone.role(role, train=True):
        logp_B = summed_B(response_logps_R(backbone, hidden_N_H(backbone, pack), pack))
    ratio_B = logp_B - reference_B
    return dpo(ratio_B[::2] - ratio_B[1::2], 0.1).sum()


def ppo(backbone: Backbone, role: str, head: ScalarHead, pack: Pack) -> Iterator[Tensor]:
    with backbone.role(role, train=True):
        logp_R = response_logps_R(backbone, hidden_N_H(backbone, pack), pack)
    advantage_R = torch.linspace(-1, 1, len(logp_R))
    yield policy_loss_R(logp_R, logp_R.detach(), advantage_R, 0.2, torch.ones_like(logp_R)).sum()


LOSSES: dict[str, Callable[..., Any]] = {
    "sft": sft,
    "reward": reward,
    "preference": preference,
    "ppo": ppo,
}


def learn(
    backbone: Backbone,
    role: str,
    folder: Path,
    kinds: tuple[str, ...] = tuple(LOSSES),
    steps: int = 2,
    decay: float = 0.1,
) -> Loop:
    """``steps`` real steps of each kind of loss in one loop."""
    named = {f"adapter/{n}": p for n, p in backbone.named_parameters(role).items()}
    head = ScalarHead(backbone.hidden_size, "normal", seed=0)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=decay)
    loop = Loop(named, optim, steps * len(kinds), folder, learners=[Learner(backbone, role)])
    for kind in kinds:
        for _ in range(steps):
            loop.update([PACK], functools.partial(LOSSES[kind], backbone, role, head), 4)
    return loop


@pytest.mark.parametrize(
    ("method", "precision"), [(m, p) for m in METHODS for p in CARDS[m].precisions if p != "bf16"]
)
def test_a_method_learns_saves_reloads_and_merges(
    tiny_folder: Path, tmp_path: Path, method: str, precision: str
) -> None:
    backbone = load(tiny_folder, method, precision)
    frozen, bare = backbone.frozen_digest(), logps(backbone, None)
    backbone.add_role("policy", seed=1)
    backbone.add_role("other", seed=2)
    fit(backbone, "policy", DOCUMENTS)
    other = logps(backbone, "other")
    started = {n: p.detach().clone() for n, p in backbone.named_parameters("policy").items()}
    learn(backbone, "policy", tmp_path / "loop")
    learnt = logps(backbone, "policy")
    assert all(
        not torch.equal(p, started[n]) for n, p in backbone.named_parameters("policy").items()
    )
    assert (learnt - bare).abs().max() > 1e-2
    assert torch.equal(logps(backbone, "other"), other) and torch.equal(logps(backbone, None), bare)
    assert backbone.frozen_digest() == frozen

    backbone.save_role("policy", tmp_path / "saved")
    backbone.add_role("again", start=tmp_path / "saved")
    assert torch.equal(logps(backbone, "again"), learnt)

    save_merged(backbone.causal_lm, "policy", tmp_path, torch.float32)
    model = plain(tiny_folder)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    merged = load(tiny_folder, "lora")
    merged.causal_lm.load_state_dict(
        {_named(merged, n): t for n, t in load_file(tmp_path / "model.safetensors").items()},
        strict=False,
    )
    assert_close(logps(merged, None), learnt, atol=2e-4, rtol=1e-4)
    backbone.drop_role("policy")
    assert torch.equal(logps(backbone, "other"), other)


def _named(backbone: Backbone, name: str) -> str:
    """A plain weight's name in a model with adapters."""
    own = backbone.causal_lm.state_dict().keys()
    path, _, kind = name.rpartition(".")
    return name if name in own else f"{path}.base_layer.{kind}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_a_fresh_role_is_the_model(tiny_folder: Path, method: str, precision: str) -> None:
    if precision not in CARDS[method].precisions:
        return
    backbone = load(tiny_folder, method, precision)
    backbone.add_role("policy", seed=3)
    assert_close(logps(backbone, "policy"), logps(backbone, None), atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("precision", ["nf4", "fp32"])
def test_the_first_half_of_pissa_is_the_truncated_svd_and_of_olora_the_qr(
    tiny_folder: Path, precision: str
) -> None:
    for method in ("pissa", "olora"):
        backbone = load(tiny_folder, method, precision)
        backbone.add_role("policy")
        assert isinstance(backbone.method, Halves)
        layer: Any = backbone.method.layers[0]
        weight_O_I = Weight(layer.get_base_layer()).O_I()
        a, b = layer.lora_A["policy"].weight[:R], layer.lora_B["policy"].weight[:, :R]
        if method == "pissa":
            u, s, v = torch.linalg.svd(weight_O_I)
            assert_close(ALPHA / R * b @ a, (u[:, :R] * s[:R]) @ v[:R], atol=EXACT, rtol=EXACT)
        else:
            assert_close(b.T @ b, torch.eye(R), atol=EXACT, rtol=EXACT)
            assert_close(b @ a, b @ b.T @ weight_O_I, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_second_half_never_moves_and_peft_loads_the_files(
    tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    backbone = load(tiny_folder, method)
    backbone.add_role("policy")
    assert isinstance(backbone.method, Halves)
    before = {n: t.clone() for n, t in backbone.method.parts("policy").items()}
    learn(backbone, "policy", tmp_path / "loop", decay=0.5)
    for name, part in backbone.method.parts("policy").items():
        assert torch.equal(part, before[name])
    backbone.save_role("policy", tmp_path / "saved")
    with pytest.warns(UserWarning, match="prefloop_method"):
        other = PeftModel.from_pretrained(plain(tiny_folder), str(tmp_path / "saved"))
    ids = torch.tensor([DOCUMENTS[0].prompt_ids])
    with torch.no_grad(), backbone.role("policy"):
        assert_close(other(ids).logits, backbone.model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "method", ["dora", "adalora", "vera", "ia3", "oft", "boft", "hra", "miss", "randlora"]
)
def test_peft_loads_the_files_of_its_own_methods(
    tiny_folder: Path, tmp_path: Path, method: str
) -> None:
    backbone = load(tiny_folder, method)
    backbone.add_role("policy")
    learn(backbone, "policy", tmp_path / "loop", kinds=("sft",))
    backbone.save_role("policy", tmp_path / "saved")
    other = PeftModel.from_pretrained(plain(tiny_folder), str(tmp_path / "saved")).eval()
    ids = torch.tensor([DOCUMENTS[0].prompt_ids])
    with torch.no_grad(), backbone.role("policy"):
        assert_close(other(ids).logits, backbone.model(ids).logits, atol=1e-4, rtol=1e-4)


def test_eva_starts_along_the_largest_variance_of_the_inputs(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, "eva")
    backbone.add_role("policy")
    fit(backbone, "policy", DOCUMENTS)
    layer: Any = backbone.method.layers[1]  # type: ignore[attr-defined]
    with torch.no_grad():
        ids = torch.tensor(
            [
                i
                for d in DOCUMENTS
                for i in (*d.prompt_ids, *d.responses_ids[0], *d.responses_ids[1])
            ]
        )
        seen = backbone.causal_lm.model.layers[0].input_layernorm(
            backbone.causal_lm.model.embed_tokens(ids)
        )
    v = torch.linalg.svd(seen, full_matrices=False)[2][:R]
    assert_close((layer.lora_A["policy"].weight @ v.T).abs(), torch.eye(R), atol=1e-3, rtol=1e-3)


def test_adalora_ends_at_its_budget_and_resumes_to_the_bit(
    tiny_folder: Path, tmp_path: Path
) -> None:
    def ranks(backbone: Backbone) -> int:
        values = [p for n, p in backbone.named_parameters("policy").items() if n.endswith("lora_E")]
        return sum(int((p != 0).sum()) for p in values)

    backbone = load(tiny_folder, "adalora")
    backbone.add_role("policy")
    learn(backbone, "policy", tmp_path / "whole", steps=3)
    assert ranks(backbone) == R * len(LINEAR)
    whole = logps(backbone, "policy")

    again = load(tiny_folder, "adalora")
    again.add_role("policy")
    named = {f"adapter/{n}": p for n, p in again.named_parameters("policy").items()}
    head = ScalarHead(again.hidden_size, "normal", seed=0)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
    kinds = [kind for kind in LOSSES for _ in range(3)]
    for part in (kinds[:10], kinds[10:]):
        loop = Loop(
            named, optim, len(kinds), tmp_path / "parts", learners=[Learner(again, "policy")]
        )
        loop.restore()
        for kind in part:
            loop.update([PACK], functools.partial(LOSSES[kind], again, "policy", head), 4)
        loop.save({})
        again.method.take_extra("policy", {})  # a new process knows nothing
    assert torch.equal(logps(again, "policy"), whole)


def test_lora_plus_lets_b_learn_at_its_ratio(tiny_folder: Path, tmp_path: Path) -> None:
    backbone = load(tiny_folder, "lora+", options={"ratio": 8})
    backbone.add_role("policy")
    loop = learn(backbone, "policy", tmp_path, kinds=("sft",), steps=1)
    names = {id(p): n for n, p in loop.parameters.items()}
    for group, peak in zip(loop.optimizer.param_groups, loop.schedule.base_lrs, strict=True):
        assert {(".lora_B." in names[id(p)]) for p in group["params"]} == {
            peak == pytest.approx(8e-2)
        }


def test_restoring_another_method_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    backbone = load(tiny_folder, "lora")
    backbone.add_role("policy")
    backbone.save_role("policy", tmp_path)
    for method in ("pissa", "dora", "rslora", "vera"):
        other = load(tiny_folder, method)
        with pytest.raises(ModelError, match=r"does not fit backbone.adapter"):
            other.add_role("policy", start=tmp_path)
    again = load(tiny_folder, "lora")
    again.add_role("policy", start=tmp_path)
    assert torch.equal(logps(again, "policy"), logps(backbone, "policy"))
