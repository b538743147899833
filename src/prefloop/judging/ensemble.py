"""The reward ensemble of a run as a grader: the mean of its members' normalised scores."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.errors import DataError, ModelError
from prefloop.judging.verdict import Grade
from prefloop.models.backbone import Backbone
from prefloop.models.lookup import fingerprint, resolve
from prefloop.models.reward import Reward, member_folder
from prefloop.records import Message, Prompt
from prefloop.store import MANIFEST, file_digest

_HOW = "give a run's folder (runs/demo) or a reward artifact's"


class RewardGrader:
    """Scores by the reward model in ``source``, a run's folder or a reward artifact's.

    The backbone is loaded at the first score from what the artifact's manifest says, or is the one given. Responses count as finished, and
    lose their end where they are over ``max_length``, as in training; a prompt that leaves no room fails alone. Raises ``ModelError`` when
    the folder holds no reward model, or when it was trained on another backbone than the one given or found.
    """

    def __init__(self, source: Path, models: Path | None = None, backbone: Backbone | None = None) -> None:
        self.folder = _artifact(source)
        self._trained_on = _identity(self.folder)
        self._models = models or self.folder.parent / "models"
        self._backbone = backbone
        self._own = False
        self._reward: Reward | None = None
        self.members = _read(self.folder / "reward.json")["members"]
        self.name = f"reward:{source.name or self.folder.name}"
        if backbone is not None:
            self._require_same(fingerprint(backbone.folder), backbone.config.model)

    def grade(self, prompt: Prompt, response: str) -> float:
        """Mean score of ``response``. Raises ``DataError`` naming a prompt that leaves no room for it."""
        grade = self.grade_many([(prompt, response)])[0]
        if grade.failed:
            raise DataError(grade.failed)
        return grade.score

    def grade_many(
        self, items: Sequence[tuple[Prompt, str]], on_grade: Callable[[int, Grade], None] | None = None
    ) -> list[Grade]:
        """Mean scores in the order of ``items``; responses to one prompt are scored together."""
        reward = self._loaded() if items else None
        out: dict[int, Grade] = {}
        documents = []
        for prompt, keys in _by_prompt(items):
            try:
                documents.append(self._document(prompt, [items[key][1] for key in keys], keys))
            except DataError as error:
                out.update((key, Grade.failure(str(error))) for key in keys)
        if reward is not None and documents:
            scores = reward.score(documents, "judge: reward", sum(len(each.keys) for each in documents))
            for key, members in scores.items():
                parts = {f"member {k}": score for k, score in enumerate(members)} if len(members) > 1 else {}
                out[key] = Grade(sum(members) / len(members), parts)
        for index in range(len(items)) if on_grade else ():
            on_grade(index, out[index])  # type: ignore[misc]
        return [out[index] for index in range(len(items))]

    def fingerprint(self) -> str:
        """Hash of every member's files and of the backbone that they belong to."""
        files = [self.folder / "reward.json"]
        for k in range(self.members):
            files += [
                member_folder(self.folder, k) / name for name in ("adapter_model.safetensors", "head.safetensors")
            ]
        try:
            what = [json.dumps(self._trained_on, sort_keys=True), *map(file_digest, files)]
        except OSError as error:
            raise ModelError(f"'{self.folder.name}' is not a whole reward model: {error.filename} is missing") from None
        return f"reward:{hashlib.sha256(' '.join(what).encode()).hexdigest()}"

    def close(self) -> None:
        """Take the members off the backbone, and give the memory of one that was loaded here back; it loads again when it is asked."""
        if self._reward is not None:
            self._reward.drop()
            self._reward = None
        if self._own:
            self._backbone, self._own = None, False
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _document(self, prompt: Prompt, responses: Sequence[str], keys: Sequence[int]) -> Document:
        backbone = self._loaded().backbone
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        prompt_ids = encoder.prompt(prompt.id, prompt.prompt)
        return Document(prompt_ids, [encoder.response(text, len(prompt_ids)) for text in responses], keys)

    def _loaded(self) -> Reward:
        if self._reward is None:
            self._reward = Reward.load(self._backbone or self._load_backbone(), self.folder)
        return self._reward

    def _load_backbone(self) -> Backbone:
        name = _read(self.folder / "adapter_config.json")["base_model_name_or_path"]
        folder = resolve(name, self._models)
        self._require_same(fingerprint(folder), name)
        known = {k: self._trained_on[k] for k in ("precision", "max_length", "chat_template") if k in self._trained_on}
        if known.get("chat_template", "model") not in ("model", "chatml"):
            raise ModelError(
                f"the reward model in '{self.folder.name}' was trained with a chat template from a file, which its manifest does not hold: judge "
                "with a loaded backbone that has it (open_judge's backbone)"
            )
        adapter = AdapterConfig(**self._trained_on["adapter"])
        self._backbone = Backbone.load(BackboneConfig(model=name, adapter=adapter, **known), folder)
        self._own = True
        return self._backbone

    def _require_same(self, found: str, name: str) -> None:
        if found != self._trained_on["model"]:
            trained = _read(self.folder / "adapter_config.json")["base_model_name_or_path"]
            raise ModelError(
                f"the reward model in '{self.folder.name}' was trained on {trained} (content {self._trained_on['model'][:8]}), not on {name} "
                f"(content {found[:8]}): judge with the backbone that it belongs to"
            )


def _by_prompt(items: Sequence[tuple[Prompt, str]]) -> list[tuple[Prompt, list[int]]]:
    """Indices of items that share a conversation, in order of appearance."""
    groups: dict[tuple[tuple[str, str], ...], tuple[Prompt, list[int]]] = {}
    for index, (prompt, _) in enumerate(items):
        turns: Sequence[Message] = prompt.prompt
        groups.setdefault(tuple((m.role, m.content) for m in turns), (prompt, []))[1].append(index)
    return list(groups.values())


def _artifact(source: Path) -> Path:
    """The reward artifact that ``source`` is, or that the run in it links."""
    for folder in (source, source / "artifacts" / "reward"):
        if (folder / "reward.json").is_file():
            return folder.resolve()
    raise ModelError(f"'{source}' holds no reward model (reward.json): {_HOW}")


def _identity(folder: Path) -> dict[str, Any]:
    """The backbone that the artifact was trained on, as its manifest tells it."""
    try:
        found = _read(folder / MANIFEST)["identity"]["backbone"]
        if not isinstance(found["model"], str) or not isinstance(found["adapter"], dict):
            raise TypeError
    except (KeyError, TypeError):
        raise ModelError(f"'{folder.name}': {MANIFEST} names no backbone; {_HOW}") from None
    return dict(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"'{path.parent.name}': {path.name} is missing or damaged; {_HOW}") from None
    return content
