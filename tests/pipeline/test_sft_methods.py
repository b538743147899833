"""What a method does around a step it does in the SFT stage too; a run that was killed ends in the
same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from torch import Tensor
from torch.testing import assert_close

from prefloop.artifacts.store import Artifact
from prefloop.base import sealed
from prefloop.config import AdapterConfig, BackboneConfig, DataConfig, OptimConfig, SFTStageConfig
from prefloop.data.encode import Encoder
from prefloop.data.sources import load_demonstrations
from prefloop.errors import ModelError
from prefloop.models.adapters.pissa import Halves
from prefloop.models.backbone import Backbone
from prefloop.pipeline.stages.sft import ROLE, SFT, _rows
from prefloop.runs.runtime import Runtime
from prefloop.training import loop
from prefloop.training.adapter_hooks import fit
from prefloop.training.held_out import mean_loss, split

R, LAYERS, STEPS = 4, 14, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"warmup": 0.0, "final": 0.25},
    "delta-lora": {"start": 1},
    "lora-drop": {"share": 0.3, "steps": 2},
    "prefix": {"tokens": 3},
}
METHODS = [
    "lora+",
    "lora-fa",
    "adalora",
    "pissa",
    "eva",
    "lora-drop",
    "delta-lora",
    "prefix",
    "bottleneck",
]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random letters: what is learnt of some soon does not carry over to others."""
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    draw = random.Random(0)
    rows = [
        {
            "id": str(i),
            "prompt": f"What of {i}?",
            "response": "".join(draw.choices("abcdefgh", k=9)),
        }
        for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(model: Path, method: str) -> BackboneConfig:
    adapter = AdapterConfig(method=method, r=R, alpha=8, options=OPTIONS.get(method, {}))
    return BackboneConfig(
        model=str(model), precision="fp32", compute="fp32", max_length=128, adapter=adapter
    )


def sft(
    folder: Path, model: Path, rows: Path, method: str, rate: float = 1e-2, **settings: Any
) -> Artifact:
    optim = OptimConfig(
        learning_rate=rate,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.1,
        checkpoint_every=1,
    )
    config = SFTStageConfig(**{"batch_size": 2, "optim": optim, **settings})
    return SFT(config, DataConfig(demonstrations=rows)).run(
        Runtime(config_of(model, method), None, "transformers", 0, folder)
    )


def tensors(artifact: Artifact) -> dict[str, Tensor]:
    return load_file(artifact.path / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, demonstrations: Path
) -> Callable[[str], Artifact]:
    """A run of a method that nobody killed, made once."""
    made: dict[str, Artifact] = {}

    def of(method: str) -> Artifact:
        if method not in made:
            made[method] = sft(
                tmp_path_factory.mktemp("whole"), tiny_folder, demonstrations, method
            )
        return made[method]

    return of


def fresh(model: Path, rows: Path, method: str) -> Backbone:
    """The role as the stage begins."""
    backbone = Backbone.load(config_of(model, method), model)
    encoder = Encoder(backbone.chat, 128)
    backbone.add_role(ROLE, seed=0)
    made = [row for d in load_demonstrations(rows).records for row in _rows(d, encoder, True)]
    fit(backbone, ROLE, (row.document(i) for i, row in enumerate(made)))
    return backbone


def ranks(saved: dict[str, Tensor]) -> int:
    return sum(int((t != 0).sum()) for name, t in saved.items() if name.endswith("lora_E"))


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_in_the_same_bytes(
    method: str,
    whole: Callable[[str], Artifact],
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = whole(method)
    assert expected.metrics["steps"] == STEPS
    emit = Runtime.emit

    def dies(self: Runtime, **event: Any) -> None:
        if event.get("event") == "step" and event["step"] == 3:
            raise KeyboardInterrupt
        emit(self, **event)

    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "emit", dies)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path, tiny_folder, demonstrations, method)
    again = sft(tmp_path, tiny_folder, demonstrations, method)
    assert (expected.status, again.status) == ("ran", "resumed")
    one, two = ((a.path / "adapter_model.safetensors").read_bytes() for a in (expected, again))
    assert one == two


@pytest.mark.parametrize("moment", ["the tensors", "the seal", "the name"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    moment: str,
    whole: Callable[[str], Artifact],
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second checkpoint is cut off after its part ``moment``, or just before it would get its
    name.
    """
    count = 0
    owner, name = {
        "the tensors": (loop, "save_file"),
        "the seal": (sealed, "write_sealed"),
        "the name": (Path, "rename"),
    }[moment]
    write = getattr(owner, name)

    def dies(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        if moment == "the name" and not Path(arguments[1]).name.startswith("step-"):
            return write(*arguments, **named)
        count += 1
        if count == 2:
            if moment != "the name":
                write(*arguments, **named)
            raise KeyboardInterrupt
        return write(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, dies)
        sft(tmp_path, tiny_folder, demonstrations, "adalora")
    (kept,) = tmp_path.rglob("step-*")
    assert kept.name == "step-000001" and (kept / loop.STATE).is_file()
    again = sft(tmp_path, tiny_folder, demonstrations, "adalora")
    assert again.status == "resumed"
    one, two = (
        (a.path / "adapter_model.safetensors").read_bytes() for a in (whole("adalora"), again)
    )
    assert one == two


def test_the_penalty_is_clipped_along_with_the_loss(
    tiny_folder: Path, demonstrations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the other stages: a penalty added to clipped gradients would outweigh them by far."""
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: Any, **named: Any) -> Any:
        norms.append(
            float(
                torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
            )
        )
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    optim = OptimConfig(max_grad_norm=1e-3, warmup_steps=0)
    sft(tmp_path, tiny_folder, demonstrations, "adalora", optim=optim)
    assert norms == pytest.approx([1e-3] * STEPS, rel=1e-3)


@pytest.mark.parametrize(("method", "ratio"), [("lora", 1), ("lora+", 16)])
def test_the_first_step_of_b_is_its_own_rate(
    method: str, ratio: float, tiny_folder: Path, demonstrations: Path, tmp_path: Path
) -> None:
    """AdamW's first step is the learning rate wherever there is a gradient."""
    made = tensors(sft(tmp_path, tiny_folder, demonstrations, method, rate=1e-3, batch_size=8))
    for name, tensor in made.items():
        if ".lora_B." in name:
            assert float(tensor.abs().median()) == pytest.approx(1e-3 * ratio, rel=1e-3)


def test_adalora_falls_to_its_budget(whole: Callable[[str], Artifact]) -> None:
    assert ranks(tensors(whole("adalora"))) == R * LAYERS


def test_the_frozen_half_of_pissa_stays(
    whole: Callable[[str], Artifact], tiny_folder: Path, demonstrations: Path
) -> None:
    method = fresh(tiny_folder, demonstrations, "pissa").method
    assert isinstance(method, Halves)
    made = tensors(whole("pissa"))
    for name, part in method.parts(ROLE).items():
        axis = 0 if ".lora_A." in name else 1
        assert torch.equal(made[name].narrow(axis, R, R), part)
        assert not torch.equal(
            made[name].narrow(axis, 0, R), method.parameters(ROLE)[name].narrow(axis, 0, R)
        )


def test_eva_starts_from_the_demonstrations(
    tiny_folder: Path, demonstrations: Path, tmp_path: Path
) -> None:
    """A waits for B, so after one step without decay it is what it began as."""
    started = fresh(tiny_folder, demonstrations, "eva").named_parameters(ROLE)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    made = tensors(sft(tmp_path, tiny_folder, demonstrations, "eva", batch_size=8, optim=optim))
    for name, parameter in started.items():
        if ".lora_A." in name:
            assert_close(made[name], parameter.detach(), atol=1e-6, rtol=0)


def test_lora_drop_shares_what_the_demonstrations_need_least(
    whole: Callable[[str], Artifact],
) -> None:
    made = tensors(whole("lora-drop"))
    different = {tensor.numpy().tobytes() for name, tensor in made.items() if ".lora_B." in name}
    assert len(different) < LAYERS == sum(".lora_B." in name for name in made)


def test_delta_loras_weights_move(whole: Callable[[str], Artifact]) -> None:
    made = tensors(whole("delta-lora"))
    layer = "model.layers.0.mlp.up_proj"
    assert made[f"{layer}.start_B"].abs().max() == pytest.approx(
        1e-2, rel=0.2
    )  # after the first step
    assert (made[f"{layer}.lora_B"] - made[f"{layer}.start_B"]).abs().max() > 1e-3


def test_experts_of_runs_are_known_by_their_backbones_files_wherever_those_lie(
    whole: Callable[[str], Artifact], tiny_folder: Path, tmp_path: Path
) -> None:
    options = {"experts": [str(whole(name).path) for name in ("lora", "lora+")]}
    moved, other = tmp_path / "moved", tmp_path / "other" / tiny_folder.name
    shutil.copytree(tiny_folder, moved)
    adapter = AdapterConfig(method="mole", r=R, alpha=8, options=options)
    config = dataclasses.replace(config_of(moved, "lora"), adapter=adapter)
    Backbone.load(config, moved).add_role("gate")
    other.parent.mkdir()
    tiny_model(other, seed=1)
    with pytest.raises(ModelError, match=r"was trained on .*give experts of this backbone"):
        Backbone.load(dataclasses.replace(config, model=str(other)), other)


def test_adalora_keeps_a_look_within_its_budget_and_is_measured_so(
    tiny_folder: Path, demonstrations: Path, tmp_path: Path
) -> None:
    found = sft(
        tmp_path,
        tiny_folder,
        demonstrations,
        "adalora",
        rate=3e-2,
        epochs=8.0,
        eval_share=0.4,
        eval_every=1,
        patience=2,
    )
    assert found.metrics["best_step"] >= 14  # of 20
    assert ranks(tensors(found)) == R * LAYERS
    backbone = Backbone.load(config_of(tiny_folder, "adalora"), tiny_folder)
    backbone.add_role(ROLE, start=found.path)
    encoder = Encoder(backbone.chat, 128)
    rows = [
        row for d in load_demonstrations(demonstrations).records for row in _rows(d, encoder, True)
    ]
    held = split(rows, SFTStageConfig(eval_share=0.4), 0)[1]
    documents = [row.document(i) for i, row in enumerate(held)]
    assert found.metrics["held_out_loss"] == pytest.approx(
        mean_loss(backbone, ROLE, documents), abs=1e-6
    )
