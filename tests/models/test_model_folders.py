"""Model folders and adapters of other people: whatever is wrong with them is told, by folder and
file, before memory is spent.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reliability.models import campaign
from safetensors.torch import load_file, save_file
from tiny import add_random_role, load, tiny_tokenizer

from prefloop.artifacts.references import policy_of
from prefloop.base import json_object
from prefloop.base.json_object import read_object
from prefloop.data.chat import ChatFormat
from prefloop.errors import ModelError
from prefloop.evaluation.judges.local import LocalModel
from prefloop.models import folder
from prefloop.models.heads import ScalarHead
from prefloop.models.lookup import resolve
from prefloop.models.reward_model import Reward, Saved
from prefloop.models.show import chat_of
from prefloop.planning.shapes import shape_of
from prefloop.runs.open import config_of


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "theirs"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


ROADS: dict[str, Callable[[Path], object]] = {
    "load": lambda place: load(place),
    "plan": lambda place: shape_of(str(place), place),
    "check --show": lambda place: chat_of(str(place), "model", place),
    "judge": lambda place: LocalModel(str(place), place)._engine,
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "'theirs': config.json holds a list of 0 where an object belongs"),
        (b"\xff\xfe", r"'theirs': config.json is not UTF-8 \(byte 0\)"),
        (b"", "'theirs': config.json cannot be read"),
        (b"[" * 200_000, "'theirs': config.json cannot be read"),
        (
            b'{"a":' * 100 + b"1" + b"}" * 100,
            "'theirs': config.json cannot be read .nested more than 64 levels deep",
        ),
    ],
)
def test_a_config_that_is_no_object_is_told_on_every_road(
    content: bytes, said: str, road: str, copy: Path
) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        ROADS[road](copy)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"hidden_size": -64},
            "config.json: hidden_size is -64; it must be a whole number from 1 to 1,048,576",
        ),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; .* to 2,000"),
        ({"num_hidden_layers": 10**4300 - 1}, "num_hidden_layers is far more"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four'"),
        ({"text_config": {"hidden_size": 0}}, "hidden_size is 0"),
        ({"text_config": []}, r"text_config is \[\], where an object belongs"),
        ({"quantization_config": "nf4"}, "quantization_config is 'nf4', where an object belongs"),
    ],
)
def test_sizes_that_make_no_sense_are_told_before_a_model_is_built(
    fields: Any, said: str, copy: Path
) -> None:
    change(copy / "config.json", **fields)
    with pytest.raises(ModelError, match=f"'theirs': .*{said}"):
        resolve(str(copy), copy)


@pytest.mark.parametrize("road", ROADS)
def test_code_of_a_model_is_neither_run_nor_asked_about(
    road: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "configuration_theirs.py").write_text("raise SystemExit('ran')")
    code = "configuration_theirs.Theirs"
    change(
        copy / "config.json",
        model_type="theirs",
        auto_map={"AutoConfig": code, "AutoModelForCausalLM": code},
    )
    change(
        copy / "tokenizer_config.json",
        tokenizer_class="Theirs",
        auto_map={"AutoTokenizer": ["configuration_theirs.Theirs", None]},
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError, match="it brings code of its own, which prefloop never runs"):
        ROADS[road](copy)


def cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def pickled(weights: Path) -> None:
    weights.unlink()
    (weights.parent / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def without_one(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def transposed(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors[
        "model.layers.1.mlp.up_proj.weight"
    ].T.contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})


def placed(file: str) -> Callable[[Path], None]:
    def place(weights: Path) -> None:
        index = {"weight_map": {"model.norm.weight": file}}
        (weights.parent / "model.safetensors.index.json").write_text(json.dumps(index))

    return place


DAMAGED: list[tuple[Callable[[Path], Any], str]] = [
    (cut, "'theirs': model.safetensors cannot be used"),
    (lambda path: path.write_bytes(b""), "'theirs': model.safetensors cannot be used"),
    (Path.unlink, "'theirs' holds no model.safetensors and no index of shards"),
    (
        pickled,
        "'theirs' holds no model.safetensors: pytorch_model.bin is a pickle, which could run code",
    ),
    (without_one, "the weights in 'theirs' lack 1 tensors .*layers.1.mlp.up_proj"),
    (transposed, "cannot be used: .*size mismatch|cannot be used: .*ismatch"),
    (
        placed("../base/model.safetensors"),
        "index.json names '../base/model.safetensors': shards must be safetensors files in",
    ),
    (placed("/etc/passwd"), "index.json names '/etc/passwd': shards must be"),
    (placed("pytorch_model.bin"), "index.json names 'pytorch_model.bin': shards must be"),
    (placed("other.safetensors"), "'theirs': other.safetensors is missing"),
    (
        lambda path: change(path.parent / "config.json", num_hidden_layers=300),
        "asks for 300 layers, .* hold only 20 tensors",
    ),
    (
        lambda path: change(path.parent / "config.json", intermediate_size=1 << 20),
        "asks for .* weights, far more than",
    ),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_weights_are_told_by_folder_and_file(
    damage: Callable[[Path], Any], said: str, copy: Path
) -> None:
    damage(copy / "model.safetensors")
    with pytest.raises(ModelError, match=said):
        load(copy)
    with pytest.raises(ModelError, match=said):
        _ = LocalModel(str(copy), copy)._engine


def test_what_a_library_raised_is_kept_and_a_fault_of_ours_stays_one(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(ModelError, match="the tokenizer in 'theirs' cannot be used") as caught:
        folder.tokenizer(copy)
    assert caught.value.__cause__ is not None
    with pytest.raises(torch.OutOfMemoryError), folder.reading("the model 'm'"):
        raise torch.OutOfMemoryError("the GPU is full")
    with pytest.raises(KeyboardInterrupt), folder.reading("the model 'm'"):
        raise KeyboardInterrupt


def test_a_tokenizer_of_another_model_is_told_before_the_weights_are_read(copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_over|>"], special_tokens=True)
    tokenizer.add_tokens([f"<{n}>" for n in range(9)])
    tokenizer.save_pretrained(copy)
    load(copy)  # what no template writes does no harm
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_over|>")
    tokenizer.save_pretrained(copy)
    with pytest.raises(
        ModelError, match=r"has a token of number 40\d, and the model embeds 400 tokens"
    ):
        load(copy)


def test_a_tokenizer_without_end_or_padding_is_used_or_told(copy: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    chat = ChatFormat.load(tokenizer)
    assert chat.pad_id == chat.stop_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match="no end-of-turn token and the tokenizer has no EOS"):
        ChatFormat.load(tokenizer)


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("adapter") / "adapter"
    backbone = load(tiny_folder)
    add_random_role(backbone, "made")
    backbone.save_role("made", made)
    return made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": {"x": 1}}, r"target_modules"),
        ({"target_modules": ["q_proj", 3]}, r"target_modules.list\[str\].1: .*\(found 3\)"),
        ({"r": "four"}, r"r: .*\(found 'four'\)"),
        ({"r": 2**70}, "r: .*found a very long number"),
        ({"peft_type": None}, r"peft_type: .*\(found None\)"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path"),
        ({"experts": "ab"}, "experts"),
        ({"rank_pattern": [1]}, r"rank_pattern: .*\(found a list of 1\)"),
    ],
)
def test_fields_of_an_adapter_are_looked_at_and_named(
    fields: Any, said: str, adapter: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    change(theirs / "adapter_config.json", **fields)
    with pytest.raises(ModelError, match=f"'theirs': adapter_config.json: .*{said}"):
        policy_of(theirs)


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ([], "identity"),
        ({"backbone": []}, "identity.backbone"),
        ({"backbone": {"max_length": "long"}}, "identity.backbone.max_length"),
        ({"backbone": {"adapter": {"options": 3}}}, "identity.backbone.adapter.options"),
        ({"generation": {"engine": 4}}, "identity.generation.engine"),
        ({"generation": {"temperature": "hot"}}, "temperature: .*found 'hot'"),
        ({"backbone": {"adapter": {"r": 0}}}, "backbone.adapter.r is 0|r"),
    ],
)
def test_fields_of_an_export_are_looked_at_and_named(
    identity: Any, said: str, adapter: Path, tmp_path: Path
) -> None:
    from prefloop.base.sealed import file_digest

    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    files = {"adapter_model.safetensors": file_digest(theirs / "adapter_model.safetensors")}
    (theirs / "prefloop.json").write_text(
        json.dumps({"key": "k", "identity": identity, "files": files})
    )
    with pytest.raises(ModelError, match=said):
        policy = policy_of(theirs)
        config_of(policy.origin, policy.name)


def test_numbers_that_are_none_in_an_adapter_are_told(
    adapter: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    tensors = load_file(theirs / "adapter_model.safetensors")
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, theirs / "adapter_model.safetensors")
    backbone = load(tiny_folder)
    with pytest.raises(
        ModelError, match=r"'theirs': adapter_model.safetensors: .* holds NaN or infinity"
    ):
        backbone.add_role("theirs", start=theirs)
    assert backbone.roles == set()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("reward.json", {"members": -1, "temperature": 1.0}, "reward.json: members"),
        ("reward.json", {"members": 10**9, "temperature": 1.0}, "reward.json: members"),
        ("reward.json", {"members": 1, "temperature": 0}, "reward.json: temperature"),
        ("reward.json", {"members": 1}, "reward.json: temperature"),
        ("reward.json", [], "reward.json holds a list of 0"),
        ("head.json", {"hidden_size": 10**12, "bias": True}, "head.json: hidden_size"),
        (
            "head.json",
            {"hidden_size": 32, "bias": False},
            "head.safetensors does not match head.json",
        ),
        ("head.json", {"hidden_size": 64, "bias": "no"}, "head.json: bias"),
    ],
)
def test_a_damaged_reward_model_is_told(
    name: str, content: Any, said: str, adapter: Path, tmp_path: Path
) -> None:
    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    ScalarHead(64, "normal").save(theirs)
    (theirs / "reward.json").write_text('{"members": 1, "temperature": 1.0}')
    (theirs / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"'theirs': {said}"):
        Saved.read(theirs)
        ScalarHead.load(theirs)


def test_a_head_of_another_width_is_told(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    ScalarHead(32, "normal").save(theirs)
    (theirs / "reward.json").write_text('{"members": 1, "temperature": 1.0}')
    with pytest.raises(
        ModelError, match="its head reads hidden states of 32 numbers, but the model's have 64"
    ):
        Reward.load(load(tiny_folder), theirs)


def test_weights_quantized_to_few_bits_are_enough(copy: Path) -> None:
    blank = folder.blank(folder.configuration(copy), "theirs")
    size = sum(p.numel() for p in blank.parameters())
    tensors = {
        f"w{i}": torch.zeros(size // 40, dtype=torch.uint8) for i in range(10)
    }  # 2 bits each
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="far more than"):
        folder.require_weights(copy, blank)
    change(copy / "config.json", quantization_config={"quant_method": "gptq", "bits": 2})
    folder.require_weights(copy, blank)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"]
)
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
def test_a_file_without_an_end_is_told_on_every_road(
    make: Callable[[Path], None], name: str, copy: Path
) -> None:
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    for road in ROADS.values():
        with pytest.raises(
            ModelError, match=f"'{path.parent.name}': {path.name} is a pipe or a device"
        ):
            road(copy)


def test_weights_of_an_adapter_without_an_end_are_told(adapter: Path, tmp_path: Path) -> None:
    theirs = Path(shutil.copytree(adapter, tmp_path / "theirs"))
    (theirs / "adapter_model.safetensors").unlink()
    os.mkfifo(theirs / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is a pipe or a device"):
        folder.read_tensors(theirs)


def test_a_file_that_says_it_has_no_bytes_is_read_no_further_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_object, "MOST_BYTES", 20)
    (tmp_path / "x.json").symlink_to("/proc/self/status")
    with pytest.raises(ModelError, match=r"x\.json has over 20 bytes"):
        read_object(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"x.json is missing"):
        read_object(tmp_path / "x.json")


def test_mutated_folders_files_and_templates_end_well_or_in_an_error_that_says_so() -> None:
    assert campaign(seed=7, size=3) == []
