"""In bfloat16 an adapter's change survives: when it is merged into weights, and beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.models.backbone import Backbone
from prefloop.models.fused import kernels
from prefloop.models.merge import plain_weights


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def share(found: Tensor, wanted: Tensor) -> float:
    """Of a change, what is there: 1 is all of it."""
    return float((found.double() * wanted.double()).sum() / wanted.double().square().sum())


def test_small_changes_are_kept_on_average_where_rounding_to_the_nearest_loses_them() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(300, 500, generator=generator).bfloat16()
    change = 1e-3 * torch.randn(300, 500, generator=generator)
    found = torch.empty_like(before)
    kernels.settle(before.float() + change, found)
    nearest = (before.float() + change).bfloat16()
    assert share(nearest.float() - before.float(), change) < 0.9
    assert share(found.float() - before.float(), change) == pytest.approx(1, abs=0.02)
    # Every value goes to one of its two neighbors, and none of the directions is preferred.
    error = found.double() - before.double() - change.double()
    step = 2.0 ** (torch.maximum(found.abs(), before.abs()).double().log2().floor() - 7)
    assert (error.abs() <= step).all()
    assert abs(error.mean() / error.std()) < 4 / error.numel() ** 0.5
    again = torch.empty_like(before)
    kernels.settle(before.float() + change, again)
    assert torch.equal(found, again), "the same policy is the same weights"


def test_what_is_a_bfloat16_number_stays_as_it_is() -> None:
    exact = torch.cat(
        [torch.randn(70).bfloat16(), torch.tensor([0.0, -0.0, 1e-30, -3e38]).bfloat16()]
    )
    for shape in ((74,), (2, 37)):
        out = torch.empty(shape, dtype=torch.bfloat16)
        kernels.settle(exact.float().view(shape), out)
        assert torch.equal(out.view(-1), exact)


def test_any_shape_and_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 64)
    exact = torch.randn(3, 8, 8)
    out = torch.empty(3, 8, 8, dtype=torch.bfloat16)
    kernels.settle(exact, out)
    assert ((out.float() - exact).abs() <= 2**-7 * exact.abs()).all(), (
        "the weights of three experts"
    )
    single = torch.empty((), dtype=torch.bfloat16)
    kernels.settle(torch.tensor(1.5), single)
    assert single == 1.5
    # CUDA's own nan is all ones: what is added to it would carry over into the sign.
    odd = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800000], dtype=torch.int32).view(
        torch.float32
    )
    kept = torch.empty(4, dtype=torch.bfloat16)
    kernels.settle(odd, kept)
    assert kept[:3].isnan().all() and kept[3] == float("inf")


def test_a_block_of_columns_is_rounded_as_in_the_whole() -> None:
    exact = torch.randn(9, 40)
    whole, parts = (
        torch.empty(9, 40, dtype=torch.bfloat16),
        torch.empty(9, 40, dtype=torch.bfloat16),
    )
    kernels.settle(exact, whole)
    for start, stop in ((0, 16), (16, 40)):
        kernels.settle(exact[:, start:stop], parts[:, start:stop], start, 40)
    assert torch.equal(whole, parts)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, b, a = torch.randn(40, 30).bfloat16(), 0.01 * torch.randn(40, 3), torch.randn(3, 30)
    results = []
    for chunk in (1 << 20, 90, 1):
        monkeypatch.setattr(kernels, "CHUNK", chunk)
        merged, settled = weight.clone(), torch.empty_like(weight)
        kernels.add_product(merged, b.bfloat16(), a.bfloat16(), 2.0)
        kernels.settle(weight.float() + 2 * (b.bfloat16().float() @ a.bfloat16().float()), settled)
        assert (merged != settled).sum() <= 2, "sums in another order"
        results.append(merged)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def loaded(folder: Path, method: str = "lora", size: float = 0.01, **settings: Any) -> Backbone:
    """In bfloat16 unless told, with a role whose effect is small."""
    adapter = AdapterConfig(method=method, r=4, alpha=8, dropout=0.0)
    given = {"compute": "bf16", "attention": "sdpa", "max_length": 256, **settings}
    backbone = Backbone.load(
        BackboneConfig(model="tiny", adapter=adapter, **given), folder, torch.device("cpu")
    )
    backbone.add_role("policy", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return backbone


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("lora", 1e-4),
        ("dora", 1e-4),
        ("ia3", 1e-3),
        ("delta-lora", 1e-4),
        ("hra", 1e-3),
        ("oft", 1e-4),
        ("adalora", 0.01),
    ],
)
def test_a_merge_holds_the_whole_change(
    method: str, size: float, precision: str, tiny_folder: Path
) -> None:
    backbone = loaded(tiny_folder, method, precision=precision, size=size)
    found, wanted, nearest = [], [], []
    for weight in plain_weights(backbone.causal_lm):
        base, merged = (torch.empty(weight.shape, dtype=torch.bfloat16) for _ in range(2))
        exact = torch.empty(weight.shape)
        weight.write(None, base)
        weight.write("policy", merged)
        weight.write("policy", exact)
        found.append((merged.float() - base.float()).view(-1))
        wanted.append((exact - base.float()).view(-1))
        nearest.append((exact.bfloat16().float() - base.float()).view(-1))
    assert share(torch.cat(nearest), torch.cat(wanted)) < 0.8, "or this shows nothing"
    assert share(torch.cat(found), torch.cat(wanted)) == pytest.approx(1, abs=0.1)


def test_full_fine_tuning_rounds_to_the_nearest_as_its_own_products_do(tiny_folder: Path) -> None:
    backbone = loaded(tiny_folder, "full", precision="bf16")
    learnt = backbone.named_parameters("policy")
    for name, weight in backbone.merged_weights("policy"):
        assert torch.equal(weight, learnt[name].bfloat16())


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_products_hold_the_whole_change_where_it_is_far_below_what_they_are_rounded_to(
    precision: str, tiny_folder: Path
) -> None:
    backbone = loaded(tiny_folder, precision=precision)
    layer = backbone.layers[0]
    residual_N_H = (
        4
        * torch.randn(
            4000, layer.out.outputs, generator=torch.Generator().manual_seed(4)
        ).bfloat16()
    )
    with backbone.role("policy"):
        for parameter in backbone.parameters("policy"):
            parameter.copy_(
                (parameter * (0.1 if len(parameter) > 4 else 1)).bfloat16()
            )  # B is the longer one
        backbone.causal_lm(torch.tensor([[5]]))  # brings the copies of the role up to date
        adapters = layer.copies["policy"].of

        def run(group: Any, role: bool, residual: Tensor | None = None) -> Tensor:
            to = adapters[group] if role else None
            wide, part = group.buffer(len(x_N_I), x_N_I, to)
            part.copy_(x_N_I)
            return group.forward(wide, to, residual).float()

        for group, part, residual in (
            (layer.qkv, "q_proj", None),
            (layer.out, "o_proj", None),
            (layer.out, "o_proj", residual_N_H),
        ):
            x_N_I = torch.randn(
                4000, group.inputs, generator=torch.Generator().manual_seed(3)
            ).bfloat16()
            module = getattr(layer.attention, part)
            a, b = (m["policy"].weight for m in (module.lora_A, module.lora_B))
            wanted = module.scaling["policy"] * x_N_I.float() @ a.T @ b.T
            base = run(group, role=False, residual=residual)
            assert wanted.norm() < 0.002 * base.norm()
            found = (run(group, role=True, residual=residual) - base)[:, : wanted.shape[1]]
            assert share(found, wanted) == pytest.approx(1, abs=0.1), (part, residual is None)
            if residual is None:
                one = module(x_N_I).float()
                backbone.active.role = None
                assert share(one - module(x_N_I).float(), wanted) == pytest.approx(1, abs=0.1), part
                backbone.active.role = "policy"
