"""A talk with one result, or with two beside each other: turns, what of them is sent, answers,
scores, votes.

Two results answer the same talk, so that a vote between them is a comparison like any other; it
goes on with the answer that won.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from prefloop.artifacts.references import BASE, Policy, origin_of, policy_of, policy_slots
from prefloop.base.interrupt import check_interrupted
from prefloop.data.packing import Document
from prefloop.data.replies import differ
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.labeling.pool import content_of
from prefloop.models.reward_model import Reward
from prefloop.records import Comparison, Conversation, Message, Response, Vote
from prefloop.rollouts.engine import TransformersEngine
from prefloop.runs.open import Opened, context_of, require_one_backbone

Hear = Callable[[int, str], None]
"""Told (side, its text so far) after every token."""


@dataclasses.dataclass
class ChatAnswer:
    """What one result said."""

    who: str
    token_ids: list[int]
    text: str
    seed: int
    temperature: float
    ended: Literal["stop", "length", "interrupt"]


@dataclasses.dataclass
class ChatTurn:
    """A message, what was sent for it, and the answers; the talk goes on with the ``chosen``
    one.
    """

    user: str
    sent: Conversation
    sent_ids: list[int]
    answers: list[ChatAnswer]
    chosen: int = 0
    vote: Vote | None = None


class Talk:
    """``home``: the run whose results can be named by their slot alone. The n-th answer is drawn
    with ``seed + n``.
    """

    def __init__(
        self, opened: Opened, names: Sequence[str], home: Path | None = None, seed: int = 0
    ) -> None:
        self.opened, self.home, self.seed = opened, home, seed
        self.speakers = list(names)
        """One name, or two whose answers stand beside each other."""
        self.turns: list[ChatTurn] = []
        self.system = ""
        self.tools: list[dict[str, Any]] = []
        """JSON schemas of what the model may call; nothing here runs a call."""
        self.dropped = 0
        """Turns at the start of the talk that the last message was sent without."""
        self.drawn = 0
        backbone = opened.runtime.backbone
        self.context = context_of(opened.runtime)
        self.engine = TransformersEngine(backbone, opened.runtime.generation)
        self._reward: Reward | None = None
        for name in names:
            self.role(name)

    @property
    def known(self) -> list[str]:
        """Names that ``role`` takes, beside references."""
        return policy_slots(self.home) if self.home else [*self.opened.roles]

    def policy(self, name: str) -> Policy:
        """What a slot of the run, or a reference, stands for. Raises ``ModelError``."""
        if name in self.opened.policies:
            return self.opened.policies[name]
        return named(self.home, name)

    def role(self, name: str) -> str | None:
        """The role of a result on the backbone, put there when it is first asked for. Raises
        ``ModelError`` when it does not fit.
        """
        return self.opened.add(self.policy(name))

    def say(self, user: str, hear: Hear) -> ChatTurn:
        """Send a message and let every speaker answer. Ctrl-C ends the answer, and the turn, with
        what is there.

        Raises ``DataError`` for a message that does not fit into the model, ``KeyboardInterrupt``
        when nothing had been said yet.
        """
        sent, ids, dropped = self._fitting(user)
        turn = ChatTurn(user, sent, ids, [])
        for side, name in enumerate(self.speakers):
            answer = self._answer(name, ids, lambda text, side=side: hear(side, text))  # type: ignore[misc]
            if answer.token_ids:
                turn.answers.append(answer)
            if answer.ended == "interrupt":
                break
        if not turn.answers:
            raise KeyboardInterrupt
        self.dropped = dropped
        self.turns.append(turn)
        return turn

    def again(self, hear: Hear) -> ChatTurn:
        """Answer the last message anew. Raises ``ConfigError`` when there is none."""
        old = self.undo()
        try:
            return self.say(old.user, hear)
        except BaseException:
            self.turns.append(old)
            raise

    def set_temperature(self, value: float | str) -> None:
        """Sample at another temperature from here on. Raises ``ConfigError`` for what is none."""
        try:
            temperature = float(value)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature '{value}' is no number from 0 up")
        self.engine.generation = dataclasses.replace(
            self.engine.generation, temperature=temperature
        )

    def undo(self) -> ChatTurn:
        """Take the last turn back. Raises ``ConfigError`` when there is none."""
        if not self.turns:
            raise ConfigError("nothing has been said yet")
        return self.turns.pop()

    def scores(self) -> list[tuple[str, list[float]]]:
        """The reward model's scores of the last turn's answers, one a member. Raises ``ModelError``
        where the run has none.
        """
        if not self.turns:
            raise ConfigError("nothing has been said yet")
        turn = self.turns[-1]
        if self._reward is None:
            folder = self.home / "artifacts" / "reward" if self.home else Path("reward")
            if not (folder / "reward.json").is_file():
                raise ModelError("this run has no reward model to score with")
            origin = Policy("reward", folder.resolve(), "", origin_of(folder.resolve()))
            require_one_backbone([next(iter(self.opened.policies.values())), origin], self._model)
            self._reward = Reward.load(self.opened.runtime.backbone, folder.resolve())
        document = Document(
            turn.sent_ids, [a.token_ids for a in turn.answers], list(range(len(turn.answers)))
        )
        found = self._reward.score([document], total=len(turn.answers))
        return [(a.who, found[k]) for k, a in enumerate(turn.answers)]

    def prefer(
        self, choice: Literal["a", "b", "tie"], annotator: str, why: str | None = None
    ) -> Comparison:
        """Vote on the last turn's two answers; the talk goes on with the better one. Raises
        ``ConfigError`` when there are none to choose from.
        """
        if not self.turns or len(self.turns[-1].answers) != 2:
            raise ConfigError(
                "there are no two answers to choose from: /beside NAME, then say something"
            )
        turn = self.turns[-1]
        if comparison_of(turn, self) is None:
            raise ConfigError(
                "the two answers say the same, or one says nothing: there is nothing to choose"
            )
        index: Literal[0, 1, "tie"] = {"a": 0, "b": 1}.get(choice, "tie")  # type: ignore[assignment]
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        turn.vote = Vote(annotator, index, why=why, at=at)
        turn.chosen = 1 if choice == "b" else 0
        found = comparison_of(turn, self)
        assert found is not None
        return found

    def comparisons(self) -> list[Comparison]:
        """Every turn with two different answers, with its vote where one was cast."""
        return [c for turn in self.turns if (c := comparison_of(turn, self)) is not None]

    @property
    def _model(self) -> str:
        return self.opened.runtime.backbone_config.model

    def _fitting(self, user: str) -> tuple[Conversation, list[int], int]:
        """What is sent: the tools, the system text and as many of the last turns as leave room for
        an answer; its ids; how many turns were left out.
        """
        room, start = (
            self.engine.generation.max_new_tokens,
            [Message("system", self.system)] if self.system else [],
        )
        for dropped in range(len(self.turns) + 1):
            kept = self.turns[dropped:]
            past = [
                m
                for t in kept
                for m in (Message("user", t.user), Message("assistant", t.answers[t.chosen].text))
            ]
            sent = Conversation([*start, *past, Message("user", user)], self.tools)
            ids = self.opened.runtime.backbone.chat.prompt_ids(sent)
            if len(ids) + room <= self.context:
                return sent, ids, dropped
        raise DataError(
            f"the message has {len(ids)} tokens; with {room} for the answer that is over the"
            f" model's context of {self.context}: shorten it"
        )

    def _answer(self, name: str, ids: list[int], hear: Callable[[str], None]) -> ChatAnswer:
        backbone, temperature = self.opened.runtime.backbone, self.engine.generation.temperature
        role, seed = self.role(name), self.seed + self.drawn
        self.drawn += 1
        tokens: list[int] = []
        text = ""

        def heard(token: int) -> None:
            nonlocal text
            check_interrupted()
            tokens.append(token)
            now = backbone.chat.decode(tokens)
            if not now.endswith(
                "\ufffd"
            ):  # half of a character; the rest comes with the next token
                text = now
                hear(text)

        self.engine.load_policy(role)
        ended: Literal["stop", "length", "interrupt"]
        try:
            self.engine.stream(ids, seed, heard)
            ended = "stop" if tokens[-1] == backbone.chat.stop_id else "length"
        except KeyboardInterrupt:
            ended = "interrupt"
        whole = backbone.chat.decode(tokens) if tokens else ""
        if whole != text:
            hear(whole)  # it ends in half of a character
        return ChatAnswer(name, tokens, whole, seed, temperature, ended)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """JSON schemas from a file with a JSON list. Raises ``ConfigError`` for a file that is none."""
    shape = (
        'a JSON list such as [{"type": "function", "function": {"name": "get_weather",'
        ' "parameters": {…}}}]'
    )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--tools {path}: cannot be read ({error.strerror}); give {shape}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"--tools {path}: not JSON ({error}); give {shape}") from None
    if (
        not isinstance(found, list)
        or not found
        or not all(isinstance(tool, dict) for tool in found)
    ):
        raise ConfigError(f"--tools {path}: found {str(found)[:60]!r}; give {shape}")
    return found


def named(home: Path | None, name: str) -> Policy:
    """A slot of the run ``home``, under that name alone, or any reference."""
    if home is None or ":" in name or "/" in name:
        return policy_of(name)
    return dataclasses.replace(policy_of(f"{home}:{name}"), name=name)


def comparison_of(turn: ChatTurn, talk: Talk) -> Comparison | None:
    """The turn as a comparison, under an id that tells its texts; ``None`` without two different
    answers.
    """
    if len(turn.answers) != 2 or len({a.text for a in turn.answers} - {""}) != 2:
        return None
    responses = [
        Response(
            a.text,
            a.who,
            {
                "finished": a.ended == "stop",
                "policy": talk.policy(a.who).key[:16],
                "temperature": a.temperature,
                "seed": a.seed,
            },
        )
        for a in turn.answers
    ]
    votes = [turn.vote] if turn.vote else []
    found = Comparison("", turn.sent, responses, votes, {"from": "prefloop chat"})
    return dataclasses.replace(found, id=f"chat/{content_of(found).hex()[:12]}")


def keep(path: Path, comparisons: Sequence[Comparison]) -> int:
    """Add comparisons to a file, complete or not at all; a second vote of an annotator on the same
    texts replaces the first.

    Returns how many the file holds then. Raises ``DataError`` when the file holds something else.
    """
    known: dict[str, Comparison] = {}
    if path.exists() and path.stat().st_size:
        known = {c.id: c for c in load_comparisons(path, layout="auto").records}
    for new in comparisons:
        old = known.get(new.id)
        if old is not None:
            same = not differ(old.responses[0], new.responses[0])
            fresh = new if same else new.swap()
            voters = {v.annotator for v in fresh.votes}
            fresh = dataclasses.replace(
                old, votes=[*(v for v in old.votes if v.annotator not in voters), *fresh.votes]
            )
        known[new.id] = fresh if old is not None else new
    write_jsonl(path, known.values())
    return len(known)


def default_name(run: Path, algo: str | None) -> str:
    """The result of a run to talk to when none is named: its aligned policy, else the SFT model,
    else the bare one.
    """
    names: list[Any] = [name for name in policy_slots(run) if name != BASE]
    if algo in names:
        return str(algo)
    aligned = [name for name in names if name != "sft"]
    return str((aligned or names or [BASE])[-1])
