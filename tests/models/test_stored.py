"""Models whose weights are stored quantized: 4 bits are taken as they are, other ways are
refused.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_backbone import logps, train
from tiny import load
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from prefloop.errors import ModelError
from prefloop.models.fused.lora import Weight
from prefloop.models.merge import plain_weights


def test_weights_stored_in_4_bits_are_taken_as_they_are_and_computed_with_in_this_runs_precision(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Made for bfloat16, as published 4-bit models are; this run computes in float32."""
    made_for = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    stored: Any = AutoModelForCausalLM.from_pretrained(
        tiny_folder, quantization_config=made_for, dtype=torch.bfloat16
    )
    stored.save_pretrained(tmp_path / "stored")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "stored")
    backbone = load(tmp_path / "stored", precision="nf4")
    assert len(backbone.layers) == 2
    kept = dict(stored.named_parameters())
    for weight in plain_weights(backbone.causal_lm):
        if weight.layer is not None:
            base = weight.layer.get_base_layer()
            assert torch.equal(base.weight.data.flatten(), kept[weight.name].data.flatten()), (
                weight.name
            )
            assert Weight(base).O_I().dtype == torch.float32
    assert logps(backbone, None).dtype == torch.float32
    before = logps(backbone, None)
    backbone.add_role("policy")
    train(backbone, "policy", steps=1)
    assert torch.equal(logps(backbone, None), before) and not torch.equal(
        logps(backbone, "policy"), before
    )


def test_weights_stored_in_other_ways_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gptq"
    shutil.copytree(tiny_folder, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(content | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    # Of 2 or 3 bits: its weights are smaller than what 4 bits would take.
    save_file(
        {f"w{i}": torch.zeros(1) for i in range(9)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ModelError, match=r"stored quantized \(gptq\): only bitsandbytes' 4-bit weights"
    ):
        load(folder, precision="nf4")
