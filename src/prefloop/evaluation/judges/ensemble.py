"""The reward ensemble of a run as a grader: the mean of its members' normalized scores."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from prefloop.artifacts.references import metrics_of, origin_of
from prefloop.base.sealed import file_digest
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, document_of
from prefloop.data.replies import Reply, response_of
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError, ModelError
from prefloop.evaluation.judges.assessor import Grader, OnAnswer, Single
from prefloop.evaluation.judges.verdict import Grade
from prefloop.evaluation.standing import unproven
from prefloop.labeling.scoring import open_reward, reward_folder
from prefloop.models.backbone import Backbone
from prefloop.models.lookup import fingerprint
from prefloop.models.reward_model import Reward, Saved, member_folder
from prefloop.records import Prompt, prompt_key
from prefloop.runs.open import require_fingerprint


class RewardGrader(Grader):
    """Scores by the reward model in ``source``: a run's folder, a reward artifact's or an exported
    one's.

    The backbone is the one given, or is loaded at the first score by
    ``labeling.scoring.open_reward``. Responses count as finished, and lose their end where they are
    over ``max_length``, as in training. Raises ``ModelError`` when the folder holds no reward
    model, or when it was trained on another backbone than the one given or loaded.
    """

    def __init__(self, source: Path, backbone: Backbone | None = None) -> None:
        self.folder = reward_folder(source)
        self._origin = origin_of(self.folder)
        self._backbone = backbone
        self._reward: Reward | None = None
        self.members = Saved.read(self.folder).members
        self.unproven = unproven(metrics_of(self.folder))
        self.name = f"reward:{source.name or self.folder.name}"
        if backbone is not None:
            require_fingerprint(
                fingerprint(backbone.folder), backbone.config.model, {str(source): self._origin}
            )

    def ask(
        self, questions: Sequence[Single], on_answer: OnAnswer[Grade] | None = None
    ) -> list[Grade]:
        """Mean scores in the order of ``questions``; responses to one prompt are scored together.
        A prompt that leaves no room for its response has a failed grade.
        """
        reward = self._loaded() if questions else None
        out: dict[int, Grade] = {}
        documents = []
        for prompt, keys in _by_prompt(questions):
            document, failed = self._document(prompt, {key: questions[key][1] for key in keys})
            documents += [document] if document else []
            out.update((key, Grade.failure(problem)) for key, problem in failed.items())
        if reward is not None and documents:
            scores = reward.score(
                documents, "judge: reward", sum(len(each.keys) for each in documents)
            )
            for key, members in scores.items():
                parts = (
                    {f"member {k}": score for k, score in enumerate(members)}
                    if len(members) > 1
                    else {}
                )
                out[key] = Grade(sum(members) / len(members), parts)
        grades = [out[index] for index in range(len(questions))]
        if on_answer:
            for index, grade in enumerate(grades):
                on_answer(index, grade)
        return grades

    def fingerprint(self) -> str:
        """Hash of every member's files and of the backbone that they belong to."""
        origin = [self._origin.fingerprint, self._origin.settings]
        files = [self.folder / "reward.json"]
        for k in range(self.members):
            files += [
                member_folder(self.folder, k) / name
                for name in ("adapter_model.safetensors", "head.safetensors")
            ]
        try:
            parts = [json.dumps(origin, sort_keys=True), *map(file_digest, files)]
        except OSError as error:
            raise ModelError(
                f"'{self.folder.name}' is not a whole reward model: {error.filename} is missing"
            ) from None
        return f"reward:{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"

    def close(self) -> None:
        """Take the members off the backbone, and free the backbone if it was loaded here. The next
        question loads them again.
        """
        if self._reward is not None:
            self._reward.drop()
            self._reward = None
            if self._backbone is None:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _document(
        self, prompt: Prompt, replies: Mapping[int, Reply]
    ) -> tuple[Document | None, dict[int, str]]:
        """The prompt with the replies that the model can read, and by key the problem of each other
        reply.
        """
        backbone = self._loaded().backbone
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        readable: dict[int, Tokens] = {}
        failed: dict[int, str] = {}
        for key, reply in replies.items():
            try:
                prompt_ids = encoder.prompt(prompt.id, prompt.prompt)
                answer = replace(response_of(reply), meta={})  # it counts as finished
                readable[key] = encoder.response(prompt.id, prompt.prompt, answer, len(prompt_ids))
            except DataError as error:
                failed[key] = str(error)
        if not readable:
            return None, failed
        return replace(
            document_of(prompt_ids, list(readable.values())), keys=list(readable)
        ), failed

    def _loaded(self) -> Reward:
        if self._reward is None:
            given = self._backbone
            self._reward = (
                Reward.load(given, self.folder) if given is not None else open_reward(self.folder)
            )
        return self._reward


def _by_prompt(questions: Sequence[Single]) -> list[tuple[Prompt, list[int]]]:
    """Indices of questions that share a conversation, in order of appearance."""
    groups: dict[str, tuple[Prompt, list[int]]] = {}
    for index, (prompt, _) in enumerate(questions):
        groups.setdefault(prompt_key(prompt.prompt), (prompt, []))[1].append(index)
    return list(groups.values())
