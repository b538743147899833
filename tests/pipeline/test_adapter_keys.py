"""What of an adapter's settings goes into keys, manifests and exports: options whole, experts by
what their files hold.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import two_experts
from made_run import Made, make_run

from prefloop.artifacts.store import Artifact
from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.errors import ModelError
from prefloop.export.adapter import export
from prefloop.runs.open import open_policies
from prefloop.runs.runtime import Runtime

TOKENS = torch.arange(9, 40)[None]


def runtime(output: Path, model: Path, method: str, **options: Any) -> Runtime:
    adapter = AdapterConfig(method=method, r=4, alpha=8, options=options)
    return Runtime(
        BackboneConfig(model=str(model), precision="fp32", max_length=256, adapter=adapter),
        output=output,
    )


def key(output: Path, model: Path, method: str, **options: Any) -> str:
    return Made("sft", 1).key(runtime(output, model, method, **options), {})


def answers(reference: str) -> torch.Tensor:
    opened = open_policies([reference])
    with opened.runtime.backbone.role(opened.roles[reference]):
        logits: torch.Tensor = opened.runtime.backbone.causal_lm(TOKENS).logits
    return logits


@pytest.fixture
def experts(tmp_path: Path, tiny_folder: Path) -> list[str]:
    """Two of one name, as the results of two runs are."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "tiny-llama"))  # as the experts call it
    places = [tmp_path / "private" / run / "expert" for run in ("one", "two")]
    for made, place in zip(two_experts(tmp_path / "made", model), places, strict=True):
        shutil.copytree(made, place)
    return list(map(str, places))


def test_an_option_written_out_with_its_own_value_is_the_same_key(
    tmp_path: Path, tiny_folder: Path
) -> None:
    for method, option, own, other in (
        ("lora+", "ratio", 16.0, 4.0),
        ("bottleneck", "activation", "gelu", "relu"),
    ):
        default = key(tmp_path, tiny_folder, method)
        assert key(tmp_path, tiny_folder, method, **{option: own}) == default
        assert key(tmp_path, tiny_folder, method, **{option: other}) != default
    assert key(tmp_path, tiny_folder, "lora+", ratio=16) == key(tmp_path, tiny_folder, "lora+")


def test_experts_count_by_what_their_files_hold_in_their_order(
    tmp_path: Path, experts: list[str]
) -> None:
    model = tmp_path / "tiny-llama"
    here = key(tmp_path, model, "mole", experts=experts)
    shutil.copytree(tmp_path / "private", tmp_path / "elsewhere")
    moved = [expert.replace("private", "elsewhere") for expert in experts]
    assert key(tmp_path, model, "mole", experts=moved) == here
    assert key(tmp_path, model, "mole", experts=experts[::-1]) != here
    config = Path(moved[0]) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 80}))
    assert key(tmp_path, model, "mole", experts=moved) != here


def test_a_result_opens_where_its_experts_lie_and_after_a_run_that_found_them_elsewhere(
    tmp_path: Path, experts: list[str]
) -> None:
    model = tmp_path / "tiny-llama"
    adapter = AdapterConfig(method="mole", r=4, alpha=8, options={"experts": experts})
    run = make_run(tmp_path / "runs", "one", model, slots=("sft",), adapter=adapter)
    expected = answers(f"{run}:sft")
    shutil.move(tmp_path / "private", tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="private/one/expert' does not exist"):
        open_policies([f"{run}:sft"])
    moved = [expert.replace("private", "elsewhere") for expert in experts]
    again: Artifact = Made("sft", 10).run(runtime(tmp_path / "runs", model, "mole", experts=moved))
    assert again.status == "reused" and again.manifest.experts == moved
    assert again.path == (run / "artifacts" / "sft").resolve()
    assert torch.equal(answers(f"{run}:sft"), expected)


def test_an_export_holds_no_path_of_its_experts_and_opens_with_them_beside_it(
    tmp_path: Path, experts: list[str]
) -> None:
    adapter = AdapterConfig(method="mole", r=4, alpha=8, options={"experts": experts})
    run = make_run(
        tmp_path / "runs", "one", tmp_path / "tiny-llama", slots=("sft",), adapter=adapter
    )
    expected = answers(f"{run}:sft")
    out = export(f"{run}:sft", tmp_path / "shared" / "adapter")
    assert all(b"private" not in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert "expert, expert-2" in (out / "README.md").read_text()
    for place, name in zip(experts, ("expert", "expert-2"), strict=True):
        shutil.copytree(place, out.parent / name)
    shutil.rmtree(tmp_path / "private")
    assert torch.equal(answers(str(out)), expected)
