"""The planner's numbers: exact counts, closed forms, and the peaks that docs/benchmarks.md
measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import rows
from tiny import load

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    GenerationConfig,
    LabelConfig,
    PPOConfig,
    RewardConfig,
    RLHFConfig,
)
from prefloop.data.packing import Document, packs
from prefloop.errors import ConfigError, ModelError, PrefloopError
from prefloop.models.backbone import Backbone
from prefloop.planning.groups import Group
from prefloop.planning.memory import CUBLAS, GIB, Device, PackSize
from prefloop.planning.shapes import Shape, shape_of
from prefloop.planning.stages import ASLEEP, Planner

LORA = AdapterConfig(r=16, alpha=32)


@pytest.fixture(scope="module")
def seven_b() -> Shape:
    return shape_of("shape:7b", Path("unused"))


def largest(budget: int, steps: int = 9, pairs: int = 8) -> PackSize:
    """The largest pack of the rows of benchmarks/preference_throughput.py."""
    data = rows(steps * pairs, 152064)
    found = []
    for start in range(0, len(data), pairs):
        documents = [Document(p, [c, r], [0, 1]) for p, c, r in data[start : start + pairs]]
        found += [
            PackSize(len(p.tokens_N), len(p.source_R), len(p.keys_M))
            for p in packs(documents, budget)
        ]
    return max(found, key=lambda tokens: tokens.all)


@pytest.mark.parametrize(
    ("kind", "checkpointing", "budget", "measured_gib"),
    [
        ("dpo", "block", 3584, 7.72),
        ("dpo", "none", 4096, 18.7),
        ("dpo", "block", 3072, 7.72),
        ("reward", "block", 3584, 7.60),
    ],
)
def test_peaks_of_the_7b_shape_are_those_measured_on_a_gpu(
    seven_b: Shape, kind: str, checkpointing: Any, budget: int, measured_gib: float
) -> None:
    config = BackboneConfig(gradient_checkpointing=checkpointing, pack_tokens=budget, adapter=LORA)
    device = Device.of(seven_b, config)
    # The benchmark has a reference beside the policy for reward training too, and no audit.
    static = device.weights() + device.shared() + device.adapter(False) + device.adapter(True)
    static += device.optimizer(audited=False) + CUBLAS
    passes = device.training(largest(budget), "score" if kind == "reward" else "logps")
    assert (static + sum(passes.values())) / GIB == pytest.approx(measured_gib, rel=0.05)


@pytest.mark.parametrize(
    ("memory", "weights", "measured_gib"),
    [(140, "full", 39.5), (24, "nf4", 19.6)],
)
def test_peaks_of_a_ppo_step_with_vllm_are_those_measured_on_a_gpu(
    seven_b: Shape, memory: int, weights: Any, measured_gib: float
) -> None:
    backbone = BackboneConfig(
        gradient_checkpointing="block", pack_tokens=3584, max_length=1024, adapter=LORA
    )
    generation = GenerationConfig(max_new_tokens=256, max_num_seqs=256, weights=weights)
    stages = Planner(
        RLHFConfig(backbone=backbone, generation=generation), seven_b, memory * GIB
    ).stages()
    peak = next(stage.peak for stage in stages if stage.name == "ppo")
    assert peak / GIB == pytest.approx(measured_gib, rel=0.1)


def test_parameters_are_those_that_the_models_publish(seven_b: Shape) -> None:
    assert seven_b.parameters == 7_615_616_512
    assert shape_of("shape:smollm2", Path("unused")).layers == 30


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2"])
def test_counts_of_a_model_and_its_adapter_equal_those_of_the_loaded_one(
    kind: str, tiny_folders: Callable[[str], Path]
) -> None:
    folder = tiny_folders(kind)
    backbone: Backbone = load(folder, kind, r=4)
    backbone.add_role("policy")
    shape = shape_of(str(folder), Path("unused"))
    adapters = [
        p
        for n, p in backbone.model.named_parameters()
        if backbone.method.owns(n, {"policy", "blank"})
    ]
    total = sum(p.numel() for p in backbone.model.parameters())
    assert shape.parameters == total - sum(p.numel() for p in adapters)
    device = Device.of(shape, BackboneConfig(precision="fp32", adapter=AdapterConfig(r=4, alpha=8)))
    assert device.role.trained == sum(p.numel() for p in backbone.parameters("policy"))
    assert device.role.fused == bool(backbone.layers)


def test_copies_of_a_role_are_counted_to_the_element(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, r=4)
    backbone.add_role("policy")
    with backbone.role("policy"):
        backbone.decoder(torch.tensor([[5, 6, 7]]))
    copies = backbone.layers[0].copies["policy"]
    role = Device.of(
        shape_of(str(tiny_folder), Path("x")), BackboneConfig(adapter=AdapterConfig(r=4, alpha=8))
    ).role
    assert role.copies == copies._a.numel() + copies._b.numel()


def test_lora_trains_r_times_in_plus_out_and_dora_a_magnitude_more(seven_b: Shape) -> None:
    def trained(method: str) -> int:
        adapter = AdapterConfig(method=method, r=16)
        return Device.of(seven_b, BackboneConfig(adapter=adapter)).role.trained

    layer = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    assert trained("lora") == trained("pissa") == 28 * 16 * layer
    assert trained("dora") - trained("lora") == sum(linear.outputs for linear in seven_b.linears)


def test_what_a_fused_layer_keeps_is_what_it_kept(tiny_folder: Path) -> None:
    """Against the tensors of a real pass: all that one layer's ``Kept`` holds but its input."""
    from prefloop.models.forward import run_N_H
    from prefloop.models.fused import layer as layers

    backbone = load(tiny_folder, r=4)
    backbone.add_role("policy")
    held: list[int] = []
    original = layers.FusedLayer.compute

    def compute(self: Any, x: torch.Tensor, run: Any, graph: bool = False) -> Any:
        out, kept = original(self, x, run, graph)
        tensors = (
            kept.wide_1,
            kept.qkv,
            kept.mixed,
            kept.wide_2,
            kept.middle_N_H,
            kept.wide_3,
            kept.gate_up,
        )
        held.append(sum(t.numel() * t.element_size() for t in tensors))
        return out, kept

    pack = packs([Document([5] * 8, [[6] * 8], [0])], 64)[0]
    with pytest.MonkeyPatch.context() as patch, backbone.role("policy", train=True):
        patch.setattr(layers.FusedLayer, "compute", compute)
        run_N_H(backbone, pack, "mask")
    config = BackboneConfig(precision="fp32", adapter=AdapterConfig(r=4, alpha=8))
    shape = shape_of(str(tiny_folder), Path("x"))
    predicted = Device.of(shape, config).layer(PackSize(16, 8, 16), graph=True)
    rotated = (
        4 * 16 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    )  # attention's own: query, keys, values
    norms = 4 * 16 * (2 + shape.heads)
    assert held == [predicted - rotated - norms] * shape.layers


def test_checkpointing_a_smaller_pack_and_nf4_each_take_less(seven_b: Shape) -> None:
    def train(**settings: Any) -> int:
        config = RLHFConfig(
            algo="dpo",
            backbone=BackboneConfig(**{"pack_tokens": 4096, "precision": "bf16", **settings}),
        )
        return next(s.peak for s in Planner(config, seven_b).stages() if s.name == "dpo")

    plain = train()
    assert all(
        train(**change) < plain
        for change in (
            {"gradient_checkpointing": "block"},
            {"pack_tokens": 2048},
            {"precision": "nf4"},
        )
    )


def test_members_of_an_ensemble_stay_beside_the_one_that_learns(seven_b: Shape) -> None:
    def adapters(members: int) -> int:
        config = RLHFConfig(algo="reward", reward=RewardConfig(members=members))
        return next(
            s.parts["adapters"] for s in Planner(config, seven_b).stages() if s.name == "reward"
        )

    one, three = adapters(1), adapters(3)
    assert three - one == pytest.approx(2 * (40_370_176 * 8 + 28 * 2 * 2_195_000), rel=0.02)


def moments(config: RLHFConfig, shape: Shape, stage: str) -> dict[str, int]:
    """Peak of each moment of a stage."""
    found: dict[str, int] = {}

    def keep(
        self: Planner,
        name: str,
        trained: int,
        whole: dict[str, dict[str, int]],
        dropout: bool = False,
    ) -> Any:
        if name == stage:
            found.update({moment: sum(parts.values()) for moment, parts in whole.items()})
        return original(self, name, trained, whole, dropout)

    original = Planner._plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "_plan", keep)
        Planner(config, shape).stages()
    return found


def test_a_fresh_adapter_that_trains_on_a_sample_takes_its_whole_logits(seven_b: Shape) -> None:
    def of(method: str) -> dict[str, int]:
        backbone = BackboneConfig(
            adapter=AdapterConfig(method=method, r=8), pack_tokens=2048, max_length=1024
        )
        return moments(RLHFConfig(algo="sft", backbone=backbone), seven_b, "sft")

    drop = of("lora-drop")
    assert drop["fit"] > 12 * 2048 * seven_b.vocabulary + drop["train"] - of("lora")[
        "train"
    ] and "fit" not in of("lora")
    assert drop["fit"] > drop["train"] and of("eva")["fit"] > 0
    reads = RLHFConfig(
        algo="dpo", backbone=BackboneConfig(adapter=AdapterConfig(method="eva", r=8))
    )
    assert "fit" in moments(reads, seven_b, "reward") and "fit" not in moments(
        reads, seven_b, "dpo"
    )


def test_timing_kernels_takes_masks_over_all_pairs_of_a_pack(seven_b: Shape) -> None:
    smollm2 = shape_of("shape:smollm2", Path("unused"))

    def of(**settings: Any) -> dict[str, int]:
        backbone = BackboneConfig(gradient_checkpointing="block", pack_tokens=32768, **settings)
        return moments(RLHFConfig(algo="dpo", backbone=backbone), smollm2, "dpo")

    timed = of()
    assert timed["choose"] > 5 * 32768**2 and timed["choose"] > timed["train"]
    assert "choose" not in of(attention="varlen") and "choose" not in of(attention="sdpa")


def test_a_pair_of_a_file_may_be_two_answers_as_long_as_the_context(seven_b: Shape) -> None:
    config = RLHFConfig(
        algo="dpo",
        label=LabelConfig(source="file"),
        backbone=BackboneConfig(pack_tokens=512, max_length=4096),
    )
    assert Planner(config, seven_b)._group() == Group(2, 1 + 2 * 4095)


def test_an_adapter_in_vllm_takes_room_by_its_rank(seven_b: Shape) -> None:
    def weights(rank: int, **settings: Any) -> int:
        backbone = BackboneConfig(adapter=AdapterConfig(r=rank))
        return Planner(
            RLHFConfig(backbone=backbone, generation=GenerationConfig(**settings)), seven_b
        ).vllm_weights()

    sides = sum(linear.inputs + linear.outputs for linear in seven_b.linears)
    assert weights(64, handover="adapter") - weights(64) == 64 * sides * 2
    assert (
        weights(65, weights="nf4") - weights(64, weights="nf4") == 64 * sides * 2
    )  # the next that vLLM takes is 128


def test_an_entropy_bonus_and_capped_logits_take_more_than_log_probs(seven_b: Shape) -> None:
    def logits(shape: Shape, coefficient: float) -> int:
        config = RLHFConfig(rollout="server", ppo=PPOConfig(entropy_coef=coefficient))
        return next(s.parts["logits"] for s in Planner(config, shape).stages() if s.name == "ppo")

    capped = dataclasses.replace(seven_b, capped=True)
    assert logits(seven_b, 0.01) > 2 * logits(seven_b, 0.0) and logits(capped, 0.0) > 2 * logits(
        seven_b, 0.0
    )


def test_generating_on_the_backbone_reads_all_prompts_of_a_batch_at_once(seven_b: Shape) -> None:
    def sampled(rows: int) -> dict[str, int]:
        generation = GenerationConfig(max_num_seqs=rows, max_new_tokens=8)
        config = RLHFConfig(
            rollout="transformers", generation=generation, backbone=BackboneConfig(max_length=1024)
        )
        return next(s.parts for s in Planner(config, seven_b).stages() if s.name == "sample")

    one, many = sampled(1), sampled(64)
    inside = (
        1016 * (2 * seven_b.intermediate + seven_b.hidden) * 2
    )  # of one row: the MLP, wide, and its input
    assert many["activations"] + many["logits"] - one["activations"] - one["logits"] > 63 * inside


def test_eager_attention_in_sft_keeps_the_scores_of_every_head(seven_b: Shape) -> None:
    def peak(attention: Any) -> int:
        config = RLHFConfig(
            algo="sft", backbone=BackboneConfig(max_length=2048, attention=attention)
        )
        return Planner(config, seven_b).stages()[0].peak

    scores = 2 * seven_b.layers * (3 * seven_b.heads - 1) * 2048**2
    assert peak("eager") - peak("sdpa") >= scores


def test_vllm_that_does_not_sleep_is_beside_training(seven_b: Shape) -> None:
    def parts(sleep: bool) -> dict[str, int]:
        generation = GenerationConfig(sleep=sleep, kv_cache_gb=2)
        stages = Planner(RLHFConfig(algo="dpo", generation=generation), seven_b).stages()
        return next(s.parts for s in stages if s.name == "reward")

    assert parts(sleep=False)["vLLM"] > 15 * GIB and parts(sleep=False)["KV cache"] == 2 * GIB
    assert parts(sleep=True)["vLLM"] == ASLEEP and "KV cache" not in parts(sleep=True)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (AdapterConfig(target_modules=".*nothing"), "matches no layer"),
        (
            AdapterConfig(r=600),
            r"k_proj of shape:7b \(512 x 3584\): a rank of 600 is over its smaller side, 512",
        ),
        (AdapterConfig(method="lorra"), "did you mean 'lora'"),
    ],
)
def test_adapters_that_cannot_be_are_named_before_anything_is_loaded(
    seven_b: Shape, adapter: AdapterConfig, said: str
) -> None:
    with pytest.raises(PrefloopError, match=said):
        Device.of(seven_b, BackboneConfig(adapter=adapter))


def test_unknown_shapes_and_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean '70b'"):
        shape_of("shape:70B", tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        shape_of("./nowhere", tmp_path)
