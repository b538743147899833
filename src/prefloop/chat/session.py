"""A chat with one model, or with two that answer the same messages.

Both models get the same messages, so a vote between their answers is an ordinary comparison. The
chat continues with the answer that won.
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
"""Called after every token with the side (0 or 1) and that side's text so far."""


@dataclasses.dataclass
class ChatAnswer:
    """One model's answer."""

    who: str
    token_ids: list[int]
    text: str
    seed: int
    temperature: float
    ended: Literal["stop", "length", "interrupt"]


@dataclasses.dataclass
class ChatTurn:
    """A user's message, the conversation sent for it, and the answers.

    The chat continues with the ``chosen`` answer.
    """

    user: str
    sent: Conversation
    sent_ids: list[int]
    answers: list[ChatAnswer]
    chosen: int = 0
    vote: Vote | None = None


class Talk:
    """A chat with the models called ``names``.

    Args:
        opened: the models on their backbone; more can join during the chat.
        names: one or two of them.
        home: a run whose models can be named by their slot alone.
        seed: the n-th answer is sampled with ``seed + n``.
    """

    def __init__(
        self, opened: Opened, names: Sequence[str], home: Path | None = None, seed: int = 0
    ) -> None:
        self.opened, self.home, self.seed = opened, home, seed
        self.speakers = list(names)
        """The one or two models that answer."""
        self.turns: list[ChatTurn] = []
        self.system = ""
        self.tools: list[dict[str, Any]] = []
        """JSON schemas of the tools that the model may call. Calls are never run."""
        self.dropped = 0
        """How many turns at the start were left out of the last message's context."""
        self.drawn = 0
        backbone = opened.runtime.backbone
        self.context = context_of(opened.runtime)
        self.engine = TransformersEngine(backbone, opened.runtime.generation)
        self._reward: Reward | None = None
        for name in names:
            self.role(name)

    @property
    def known(self) -> list[str]:
        """Names that ``role`` accepts in addition to references."""
        return policy_slots(self.home) if self.home else [*self.opened.roles]

    def policy(self, name: str) -> Policy:
        """The policy of a slot or a reference. Raises ``ModelError`` where there is none."""
        if name in self.opened.policies:
            return self.opened.policies[name]
        return named(self.home, name)

    def role(self, name: str) -> str | None:
        """A model's role on the backbone, loaded on first use.

        Raises ``ModelError`` for a model of another backbone.
        """
        return self.opened.add(self.policy(name))

    def say(self, user: str, hear: Hear) -> ChatTurn:
        """Send a message and let every model answer.

        Ctrl-C ends the turn and keeps the text so far. Raises ``DataError`` for a message that does
        not fit into the model, and ``KeyboardInterrupt`` when Ctrl-C came before the first token.
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
        """Answer the last message again. Raises ``ConfigError`` when there is none."""
        old = self.undo()
        try:
            return self.say(old.user, hear)
        except BaseException:
            self.turns.append(old)
            raise

    def set_temperature(self, value: float | str) -> None:
        """Change the temperature of later answers. Raises ``ConfigError`` for an invalid value."""
        try:
            temperature = float(value)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature '{value}' is not a number of 0 or more")
        self.engine.generation = dataclasses.replace(
            self.engine.generation, temperature=temperature
        )

    def undo(self) -> ChatTurn:
        """Remove and return the last turn. Raises ``ConfigError`` when there is none."""
        if not self.turns:
            raise ConfigError("there is no message yet")
        return self.turns.pop()

    def scores(self) -> list[tuple[str, list[float]]]:
        """The reward model's scores of the last turn's answers: (model, one score per member).

        Raises ``ConfigError`` before the first turn, ``ModelError`` where the run has no reward
        model.
        """
        if not self.turns:
            raise ConfigError("there is no message yet")
        turn = self.turns[-1]
        if self._reward is None:
            folder = self.home / "artifacts" / "reward" if self.home else Path("reward")
            if not (folder / "reward.json").is_file():
                raise ModelError("this run has no reward model to score with")
            origin = Policy("reward", folder.resolve(), "", origin_of(folder.resolve()))
            require_one_backbone([next(iter(self.opened.policies.values())), origin], self._model)
            self._reward = Reward.load(self.opened.runtime.backbone, folder.resolve())
        keys = list(range(len(turn.answers)))
        document = Document(turn.sent_ids, [a.token_ids for a in turn.answers], keys)
        scores = self._reward.score([document], total=len(turn.answers))
        return [(answer.who, scores[key]) for key, answer in enumerate(turn.answers)]

    def prefer(
        self, choice: Literal["a", "b", "tie"], annotator: str, why: str | None = None
    ) -> Comparison:
        """Vote on the last turn's two answers; the chat continues with the better one.

        Raises ``ConfigError`` without two different answers.
        """
        if not self.turns or len(self.turns[-1].answers) != 2:
            raise ConfigError(
                "there are no two answers to choose from: use /beside NAME, then send a message"
            )
        turn = self.turns[-1]
        comparison = comparison_of(turn, self)
        if comparison is None:
            raise ConfigError(
                "the two answers are the same, or one is empty: there is nothing to choose"
            )
        index: dict[str, Literal[0, 1, "tie"]] = {"a": 0, "b": 1, "tie": "tie"}
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        turn.vote = Vote(annotator, index[choice], why=why, at=at)
        turn.chosen = 1 if choice == "b" else 0
        return dataclasses.replace(comparison, votes=[turn.vote])

    def comparisons(self) -> list[Comparison]:
        """Every turn with two different answers, and its vote if there is one."""
        return [c for turn in self.turns if (c := comparison_of(turn, self)) is not None]

    @property
    def _model(self) -> str:
        return self.opened.runtime.backbone_config.model

    def _fitting(self, user: str) -> tuple[Conversation, list[int], int]:
        """The conversation to send, its token ids, and the number of turns left out.

        The conversation has the tools, the system message and as many of the latest turns as leave
        room for an answer.
        """
        room = self.engine.generation.max_new_tokens
        system = [Message("system", self.system)] if self.system else []
        for dropped in range(len(self.turns) + 1):
            past: list[Message] = []
            for turn in self.turns[dropped:]:
                answer = turn.answers[turn.chosen].text
                past += [Message("user", turn.user), Message("assistant", answer)]
            sent = Conversation([*system, *past, Message("user", user)], self.tools)
            ids = self.opened.runtime.backbone.chat.prompt_ids(sent)
            if len(ids) + room <= self.context:
                return sent, ids, dropped
        raise DataError(
            f"the message has {len(ids)} tokens; with {room} for the answer, that is over the"
            f" model's context of {self.context}: shorten the message"
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
            # A text that ends in half a character waits for the next token.
            if not now.endswith("\ufffd"):
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
            hear(whole)  # the answer ends in half a character
        return ChatAnswer(name, tokens, whole, seed, temperature, ended)


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Read tool schemas from a JSON list. Raises ``ConfigError`` for any other file."""
    shape = (
        'a JSON list such as [{"type": "function", "function": {"name": "get_weather",'
        ' "parameters": {…}}}]'
    )
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--tools {path}: cannot be read ({error.strerror}); give {shape}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"--tools {path}: not JSON ({error}); give {shape}") from None
    if not isinstance(tools, list) or not tools or not all(isinstance(t, dict) for t in tools):
        raise ConfigError(f"--tools {path}: the file holds {str(tools)[:60]!r}; give {shape}")
    return tools


def named(home: Path | None, name: str) -> Policy:
    """The policy of a slot of the run ``home``, called by that slot alone, or of a reference."""
    if home is None or ":" in name or "/" in name:
        return policy_of(name)
    return dataclasses.replace(policy_of(f"{home}:{name}"), name=name)


def comparison_of(turn: ChatTurn, talk: Talk) -> Comparison | None:
    """The turn as a comparison with an id made from its texts.

    Returns ``None`` without two different answers.
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
    comparison = Comparison("", turn.sent, responses, votes, {"from": "prefloop chat"})
    return dataclasses.replace(comparison, id=f"chat/{content_of(comparison).hex()[:12]}")


def keep(path: Path, comparisons: Sequence[Comparison]) -> int:
    """Add comparisons to a file, and return how many it then holds.

    The file is written completely or not at all. An annotator's second vote on the same texts
    replaces the first. Raises ``DataError`` when the file holds something else.
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
    """The model to talk to when none is named: the aligned policy, else SFT, else the bare
    model.
    """
    names = [name for name in policy_slots(run) if name != BASE]
    if algo is not None and algo in names:
        return algo
    aligned = [name for name in names if name != "sft"]
    return (aligned or names or [BASE])[-1]
