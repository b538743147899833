"""Merging adapters: closed forms of the sums, PEFT's own TIES and DARE, and a folder that opens
like an exported one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub import ModelCard
from made_run import make_run
from peft import PeftModel
from tiny import add_random_role, load
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefloop.artifacts.references import policy_of
from prefloop.cli import _main, guarded
from prefloop.commands.adapters import How
from prefloop.config import AdapterConfig
from prefloop.errors import ConfigError, ModelError
from prefloop.export.combine import HOWS, Combined, Factors, combine, read
from prefloop.export.merge import merge_adapters
from prefloop.runs.open import open_policies

LAYERS = {"base_model.model.a": (6, 10), "base_model.model.b": (8, 5)}


def random_factors(seed: int, rank: int = 2, scale: float = 2.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a = {n: torch.randn(rank, inputs, generator=generator) for n, (_, inputs) in LAYERS.items()}
    b = {n: torch.randn(outputs, rank, generator=generator) for n, (outputs, _) in LAYERS.items()}
    return Factors(a, b, scale, rank)


def delta(of: Factors | Combined, layer: str) -> Tensor:
    return (of.scale if isinstance(of, Factors) else 1.0) * of.b[layer] @ of.a[layer]


A, B = random_factors(1), random_factors(2, rank=1, scale=0.5)


def test_linear_is_the_weighted_sum_of_the_changes_whatever_ranks_and_scales_are() -> None:
    made = combine([A, B], [0.7, -0.2], "linear")
    for layer in LAYERS:
        assert_close(delta(made, layer), 0.7 * delta(A, layer) - 0.2 * delta(B, layer))
    assert (made.rank, made.kept, made.weights) == (3, 1.0, (0.7, -0.2))
    equal = combine([A, B])
    assert_close(
        delta(equal, "base_model.model.a"),
        (delta(A, "base_model.model.a") + delta(B, "base_model.model.a")) / 2,
    )


def test_svd_is_the_nearest_matrix_of_its_rank_and_says_how_much_it_holds() -> None:
    whole = combine([A, B], [1, 1], "svd", rank=3)
    cut = combine([A, B], [1, 1], "svd")
    assert cut.rank == 2 and whole.kept == pytest.approx(1.0)
    held = total = 0.0
    for layer in LAYERS:
        expected = delta(A, layer) + delta(B, layer)
        assert_close(delta(whole, layer), expected)
        s = torch.linalg.svdvals(expected)
        assert_close(torch.dist(delta(cut, layer), expected), s[2:].square().sum().sqrt())
        held, total = held + float(s[:2].square().sum()), total + float(s.square().sum())
    assert cut.kept == pytest.approx(held / total) and cut.kept < 1


def test_ties_keeps_the_largest_elects_signs_and_averages_those_that_agree() -> None:
    """One row: the first keeps 4 and -3 of its changes, the second 2 and 2; they disagree on the
    second column.
    """
    layer = "base_model.model.a"
    one, two = (
        {layer: torch.tensor([row])} for row in ([4.0, -3.0, 1.0, 0.0], [2.0, 2.0, 0.5, 0.0])
    )
    unit = {layer: torch.ones(1, 1)}
    made = combine(
        [Factors(one, unit, 1.0, 1), Factors(two, unit, 1.0, 1)], how="ties", density=0.5, rank=1
    )
    assert_close(delta(made, layer), torch.tensor([[3.0, -3.0, 0.0, 0.0]]))


@pytest.mark.parametrize("how", ["ties", "dare_ties"])
def test_a_negative_weight_votes_against_and_a_weight_of_0_not_at_all(how: str) -> None:
    """Nothing dropped and a rank that holds the whole layer, so that what comes out is the paper's
    operation.
    """
    layer = "base_model.model.b"
    against = dataclasses.replace(B, scale=-B.scale)
    turned = delta(combine([A, B], [1, -1], how, 1.0, 5), layer)
    assert_close(turned, delta(combine([A, against], [1, 1], how, 1.0, 5), layer))
    one, two = delta(A, layer), -delta(B, layer)
    larger = torch.where(one.abs() > two.abs(), one, two)
    assert_close(turned, torch.where(one.sign() == two.sign(), (one + two) / 2, larger))
    assert_close(delta(combine([A, B], [1, 0], how, 1.0, 5), layer), one)


def test_dare_drops_at_random_scales_up_and_is_the_same_for_the_same_seed() -> None:
    runs = [combine([A, B], [1, 1], "dare_linear", 0.5, 5, seed) for seed in (0, 0, 1)]
    first, again, other = (delta(made, "base_model.model.b") for made in runs)
    assert torch.equal(first, again) and not torch.allclose(first, other)
    one, two = delta(A, "base_model.model.b"), delta(B, "base_model.model.b")
    possible = torch.stack(
        [2 * x * one + 2 * y * two for x, y in itertools.product((0, 1), repeat=2)]
    )
    assert (first - possible).abs().min(dim=0).values.max() < 1e-4
    assert_close(
        delta(combine([A, B], [1, 1], "dare_linear", 1.0, 3), "base_model.model.b"), one + two
    )


def test_a_draw_leaves_torchs_own_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    combine([A, B], how="dare_ties")
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return make_run(
        tmp_path_factory.mktemp("arithmetic"), "one", tiny_folder, slots=("sft", "dpo", "reward")
    )


@pytest.mark.parametrize("how", ["linear", "svd", "ties", "magnitude_prune"])
def test_what_is_written_is_what_pefts_own_merging_gives(
    run: Path, tmp_path: Path, tiny_folder: Path, how: str
) -> None:
    weights = [0.6, 0.4] if how != "ties" else [0.6, 0.6]  # PEFT elects signs without them
    merge_adapters(
        [f"{run}:sft", f"{run}:dpo"], tmp_path / "out", weights, how, density=0.4, seed=3
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run / "artifacts" / "sft"), adapter_name="a")
    model.load_adapter(str(run / "artifacts" / "dpo"), adapter_name="b")
    theirs = "cat" if how == "linear" else how if how == "svd" else f"{how}_svd"
    rank = 4 if how == "svd" else 8
    model.add_weighted_adapter(["a", "b"], weights, "c", theirs, svd_rank=rank, density=0.4)
    ours = read(tmp_path / "out", "out")
    for name, layer in model.base_model.named_modules():
        if hasattr(layer, "lora_A") and "c" in layer.lora_A:
            key = f"base_model.{name}"
            assert_close(
                ours.scale * ours.b[key] @ ours.a[key],
                layer.get_delta_weight("c"),
                atol=1e-5,
                rtol=1e-4,
            )


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties"])
def test_the_same_seed_writes_the_same_file(run: Path, tmp_path: Path, how: str) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        merge_adapters(
            [f"{run}:sft", f"{run}:dpo"], tmp_path / name, how=how, density=0.4, seed=seed
        )
    one, same, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes()
        for name in ("one", "same", "other")
    )
    assert one == same != other


def test_a_merged_folder_opens_beside_its_parts_and_in_peft_and_its_card_says_what_went_in(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = tmp_path / "merged"
    words = ["adapters", "merge", f"{run}:sft", f"{run}:dpo", str(folder), "--weights", "1", "-1"]
    assert guarded(_main, words) == 0
    policy = policy_of(folder)
    assert (
        policy.origin.settings["adapter"]["r"] == 8
        and policy.origin.fingerprint == policy_of(f"{run}:sft").origin.fingerprint
    )
    ids = torch.arange(9, 40)[None]
    opened = open_policies([folder])
    with torch.no_grad(), opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(ids).logits
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        assert_close(
            PeftModel.from_pretrained(base, str(folder))(ids).logits, ours, atol=1e-4, rtol=1e-4
        )
    card = ModelCard.load(folder / "README.md")
    assert {"merge", "lora"} <= set(card.data.tags) and "--max-lora-rank 8" in card.content
    assert (
        "| `one:sft` | lora | 4 | 1 |" in card.content
        and "| `one:dpo` | lora | 4 | -1 |" in card.content
    )
    assert "2212.04089" in card.content and str(run.parent) not in card.content
    assert (folder / "tokenizer_config.json").is_file() and str(run.parent) not in (
        folder / "prefloop.json"
    ).read_text()


@pytest.mark.parametrize("method", ["rslora", "pissa", "lora-drop"])
def test_every_method_with_lora_files_merges_to_what_it_computes(
    tmp_path: Path, tiny_folder: Path, method: str
) -> None:
    made = make_run(
        tmp_path,
        "m",
        tiny_folder,
        slots=("sft", "dpo"),
        adapter=AdapterConfig(method=method, r=4, alpha=8),
    )
    merge_adapters([f"{made}:sft", f"{made}:dpo"], tmp_path / "out", [1.0, 0.0])
    ids = torch.arange(9, 40)[None]
    found = []
    for reference in (f"{made}:sft", tmp_path / "out"):
        opened = open_policies([reference])
        with torch.no_grad(), opened.runtime.backbone.role(next(iter(opened.roles.values()))):
            found.append(opened.runtime.backbone.causal_lm(ids).logits)
    assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert "prefloop_method" not in json.loads(
        (tmp_path / "out" / "adapter_config.json").read_text()
    )


def test_a_sum_of_its_sources_rank_lies_on_one_backbone_with_them(
    run: Path, tmp_path: Path
) -> None:
    sources = [f"{run}:sft", f"{run}:dpo"]
    merge_adapters(sources, tmp_path / "cut", [1.0, 0.0], how="svd")
    merge_adapters(sources, tmp_path / "whole", [1.0, 0.0])
    ids = torch.arange(9, 40)[None]
    found = []
    for references in ([*sources, tmp_path / "cut"], [tmp_path / "whole"]):
        opened = open_policies(references)
        with torch.no_grad():
            for role in opened.roles.values():
                with opened.runtime.backbone.role(role):
                    found.append(opened.runtime.backbone.causal_lm(ids).logits)
    first, second, cut, whole = found
    assert_close(cut, first, atol=1e-4, rtol=1e-4)
    assert_close(whole, first, atol=1e-4, rtol=1e-4)
    assert float((first - second).abs().max()) > 1e-3


def test_what_cannot_be_merged_is_said_with_names_and_leaves_nothing(
    run: Path, tmp_path: Path, tiny_folder: Path, tiny_folders: object
) -> None:
    def made(name: str, **settings: object) -> str:
        return f"{make_run(tmp_path / 'runs', name, tiny_folder, slots=('sft',), **settings)}:sft"  # type: ignore[arg-type]

    sft = f"{run}:sft"
    dora = made("dora", adapter=AdapterConfig(method="dora", r=4, alpha=8))
    nf4 = made("nf4", precision="nf4")
    few = made("few", adapter=AdapterConfig(r=4, alpha=8, target_modules=".*q_proj"))
    for references, more, kind, said in (
        (
            [sft, nf4],
            {},
            ModelError,
            r"one:sft' and '.*nf4:sft' belong to different backbones: precision fp32 and nf4",
        ),
        (
            [sft, dora],
            {},
            ModelError,
            r"dora:sft' is of method dora, whose files are no plain LoRA: .*lora, rslora",
        ),
        ([sft, few], {}, ModelError, r"one:sft' and '.*few:sft' adapt different layers"),
        ([sft, f"{run}:base"], {}, ConfigError, "is the bare model"),
        ([sft, f"{run}:reward"], {}, ModelError, "is a reward model"),
        ([sft, sft], {"weights": [1.0]}, ConfigError, "--weights: found 1 for 2 adapters"),
        ([sft, sft], {"how": "slerp"}, ConfigError, "'slerp' is none of linear, svd, ties"),
        ([sft, sft], {"how": "ties", "density": 0.0}, ConfigError, "--density is 0"),
        ([sft, sft], {"rank": 4}, ConfigError, "take --how svd to cut it"),
        ([sft, sft], {"how": "svd", "rank": 33}, ConfigError, "from 1 to 32"),
    ):
        with pytest.raises(kind, match=said):
            merge_adapters(references, tmp_path / "x", **more)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        merge_adapters([sft, f"{run}:dpo"], tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "runs"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (None, None, "'.*bad' cannot be read"),
        (
            "r",
            3,
            (
                "'.*bad' is no whole LoRA adapter: .* says r 3 and lora_alpha 8, its A and B have"
                " the ranks 4"
            ),
        ),
        ("r", 0, "says r 0"),
        ("r", "x", "bad': adapter_config.json: r: Input should be a valid integer"),
        ("lora_alpha", None, "lora_alpha None"),
    ],
)
def test_a_damaged_adapter_is_named_and_leaves_nothing(
    tiny_folder: Path, tmp_path: Path, field: str | None, value: object, said: str
) -> None:
    backbone = load(tiny_folder)
    backbone.config.model = str(tiny_folder)
    add_random_role(backbone, "policy")
    for name in ("good", "bad"):
        backbone.save_role("policy", tmp_path / name)
    if field is None:
        (tmp_path / "bad" / "adapter_model.safetensors").write_bytes(b"garbage")
        with pytest.raises(ModelError, match="'bad' holds no adapter"):
            backbone.add_role("other", start=tmp_path / "bad")
    else:
        described = json.loads((tmp_path / "bad" / "adapter_config.json").read_text())
        (tmp_path / "bad" / "adapter_config.json").write_text(
            json.dumps(described | {field: value})
        )
    with pytest.raises(ModelError, match=said):
        merge_adapters([tmp_path / "good", tmp_path / "bad"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [(float("nan"), 1.0), (float("inf"), 1.0), (0.0, 0.0)])
def test_weights_that_make_nothing_of_the_adapters_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"--weights: found .*give finite numbers of which one at least is not 0"
    ):
        combine([A, B], weights)


def test_the_command_wants_two_adapters_and_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert guarded(_main, ["adapters", "merge", "a", str(tmp_path / "b")]) == 2
    assert "got 2 names, but needs two or more adapters and the folder" in capsys.readouterr().err
    assert get_args(How) == HOWS
