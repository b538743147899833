"""The nouns of the loop: what people wrote, what the model answered and how people voted.

Plain, frozen, JSON-serializable. Votes are kept as they were cast; a soft label is always *derived*
from them by a named aggregation (``prefloop.labeling``) and never stored in their place. This
module imports nothing from the rest of prefloop.

A record carries all that a model sees: tools, system turns, earlier turns, tool calls and their
results, thoughts. On disk a message holds only the keys that say something, tool calls stand in the
form of OpenAI's API, and ``tools`` is next to ``prompt``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, CoreSchema, core_schema

_STRICT = ConfigDict(extra="forbid")
Role = Literal["system", "user", "assistant", "tool"]
# A text that spells a truth or a number is not accepted as one, nor is an infinite number.
Truth = Annotated[bool, Field(strict=True)]
Index = Annotated[int, Field(strict=True)]
ToolSchema = dict[str, Any]
"""The JSON schema of a tool, in the form of OpenAI's API."""
_MOST = 10**300
Strength = (
    Annotated[int, Field(strict=True, ge=-_MOST, le=_MOST)]
    | Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
)


@dataclass(frozen=True, config=_STRICT)
class ToolCall:
    """A tool call of the assistant. ``arguments`` is an object, or text where a file's arguments
    are none.
    """

    name: str
    arguments: dict[str, Any] | str
    id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Accept the form ``{"type", "id", "function": {"name", "arguments"}}``, in which files
        write calls.
        """
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            return {"id": value.get("id"), **value["function"]}
        return value

    def to_dict(self) -> dict[str, Any]:
        """The call in the form of OpenAI's API, which chat templates expect."""
        call = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {"id": self.id, **call}

    def __str__(self) -> str:
        given = self.arguments
        given = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        return f"{self.name}({given})"


@dataclass(frozen=True, config=_STRICT)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    reasoning_content: str | None = None
    """The assistant's thoughts before the answer. The chat template decides where they stand."""
    tool_calls: list[ToolCall] = dataclasses.field(default_factory=list)
    tool_call_id: str | None = None
    """For a tool's result, the id of the call that it answers."""
    name: str | None = None
    """The name of the speaker, or of the tool that answers."""
    learn: Truth = True
    """False for an assistant turn that is context and never imitated (``weight: 0`` in OpenAI's
    files).
    """

    def to_dict(self) -> dict[str, Any]:
        """The turn as a dictionary, without empty keys."""
        row: dict[str, Any] = {"role": self.role, "content": self.content}
        for key in ("reasoning_content", "tool_call_id", "name"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        if self.tool_calls:
            row["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return row if self.learn else {**row, "learn": False}

    @property
    def plain(self) -> bool:
        """Whether the turn has nothing but its text."""
        extras = (self.reasoning_content, self.tool_call_id, self.name)
        return not self.tool_calls and all(extra is None for extra in extras)

    def __str__(self) -> str:
        """The turn for people to read: its thoughts, text and calls."""
        parts = [f"[calls {call}]" for call in self.tool_calls]
        if self.content or not parts:
            parts.insert(0, self.content)
        if self.reasoning_content is not None:
            parts.insert(0, f"<think>\n{self.reasoning_content}\n</think>")
        return "\n".join(parts)


class Conversation(list[Message]):
    """The turns of a prompt. ``tools`` holds the JSON schemas of the tools that the assistant may
    call.
    """

    def __init__(self, turns: Iterable[Message] = (), tools: Iterable[ToolSchema] = ()) -> None:
        super().__init__(turns)
        self.tools = list(tools)

    @classmethod
    def of(cls, turns: Sequence[Message]) -> Conversation:
        """The turns as a conversation, with their tools if they have any."""
        return turns if isinstance(turns, Conversation) else cls(turns)

    def __eq__(self, other: object) -> bool:
        return list.__eq__(self, other) is True and self.tools == getattr(other, "tools", [])

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def keep_tools(value: Any, read: Callable[[Any], list[Message]]) -> Conversation:
            return cls(read(value), getattr(value, "tools", ()))

        return core_schema.no_info_wrap_validator_function(keep_tools, handler(list[Message]))


_NO_TOOLS: list[ToolSchema] = []


def tools_of(prompt: Sequence[Message]) -> list[ToolSchema]:
    """The tools that a prompt offers. A plain list of turns offers none."""
    return getattr(prompt, "tools", _NO_TOOLS)


def identity(prompt: Sequence[Message]) -> list[Any]:
    """The identity of a prompt, ready for JSON: every turn's role, text, thoughts and calls, and
    the tools. Whether a turn is learnt does not count.
    """
    turns: list[Any] = [
        [turn.role, turn.content] if turn.plain else _without_learn(turn) for turn in prompt
    ]
    tools = tools_of(prompt)
    return [*turns, {"tools": tools}] if tools else turns


def prompt_key(prompt: Sequence[Message]) -> str:
    """SHA-256 of a prompt's identity, as 64 hex digits."""
    return hashlib.sha256(json.dumps(identity(prompt), sort_keys=True).encode()).hexdigest()


def _without_learn(turn: Message) -> dict[str, Any]:
    return {key: value for key, value in turn.to_dict().items() if key != "learn"}


class _Prompted:
    """Reads ``tools`` next to ``prompt``, where a row has them."""

    @model_validator(mode="before")
    @classmethod
    def _take_tools(cls, value: Any) -> Any:
        row = value.kwargs if isinstance(value, ArgsKwargs) else value
        if not isinstance(row, dict) or "tools" not in row:
            return value
        rest = {key: item for key, item in row.items() if key != "tools"}
        prompt, tools = rest.get("prompt"), row["tools"]
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("tools is no list of JSON schemas")
        if isinstance(prompt, list):
            adapter: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
            rest["prompt"] = Conversation(adapter.validate_python(prompt), tools)
        return ArgsKwargs(value.args, rest) if isinstance(value, ArgsKwargs) else rest


@dataclass(frozen=True, config=_STRICT)
class Prompt(_Prompted):
    """A conversation that ends where the assistant should answer. ``meta`` carries what a scorer
    may need.
    """

    id: str
    prompt: Conversation
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Response:
    """One answer and its source: a model, a file or a person."""

    text: str
    """The answer as people read it. Where it is empty, it is made from ``turns``."""
    source: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    turns: list[Message] = dataclasses.field(default_factory=list)
    """The answer's turns, where it is more than one plain text: thoughts, tool calls and their
    results.
    """

    @classmethod
    def of(
        cls, turns: Sequence[Message], source: str = "", meta: dict[str, Any] | None = None
    ) -> Response:
        """The response that consists of ``turns``."""
        return cls(transcript(turns), source, meta or {}, [] if _one_text(turns) else list(turns))

    def __post_init__(self) -> None:
        if self.turns and not self.text:
            object.__setattr__(self, "text", transcript(self.turns))
        if self.turns and self.text != transcript(self.turns):
            raise ValueError(
                "the text is not what its turns say: leave the text empty, or the turns out"
            )

    @property
    def finished(self) -> bool:
        """False where the sampler cut the answer before its end."""
        return bool(self.meta.get("finished", True))

    def said(self) -> Any:
        """The content of an answer, ready for JSON: its text, or its turns. Whether it was cut does
        not count.
        """
        return [_without_learn(turn) for turn in self.turns] or self.text

    def key(self) -> str:
        """The identity of an answer for a model: its content, and whether it is finished."""
        return json.dumps([self.said(), self.finished], sort_keys=True)


def answer_turns(answer: Response | Demonstration) -> list[Message]:
    """The turns of an answer. A plain text is one turn."""
    return answer.turns or [
        Message("assistant", answer.text if isinstance(answer, Response) else answer.response)
    ]


def transcript(turns: Sequence[Message]) -> str:
    """The turns of an answer for people to read. The first is shown as it is, later ones with the
    name of the tool or speaker.
    """
    return "\n\n".join(
        str(turn) if index == 0 else f"[{turn.name or turn.role}]\n{turn}"
        for index, turn in enumerate(turns)
    )


def _one_text(turns: Sequence[Message]) -> bool:
    return len(turns) == 1 and turns[0].plain and turns[0].learn


@dataclass(frozen=True, config=_STRICT)
class Demonstration(_Prompted):
    """A prompt with the answer that the model should learn to give. Assistant turns of the prompt
    with ``learn`` are imitated too.
    """

    id: str
    prompt: Conversation
    response: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    turns: list[Message] = dataclasses.field(default_factory=list)
    """The answer's turns, where it is more than one plain text, as in ``Response``."""

    @classmethod
    def of(
        cls,
        id: str,
        prompt: Sequence[Message],
        turns: Sequence[Message],
        meta: dict[str, Any] | None = None,
    ) -> Demonstration:
        """The demonstration whose answer consists of ``turns``."""
        kept = [] if _one_text(turns) else list(turns)
        return cls(id, Conversation.of(prompt), transcript(turns), meta or {}, kept)


@dataclass(frozen=True, config=_STRICT)
class Vote:
    """One annotator's choice between the responses of a comparison: 0 for the first, 1 for the
    second, or a tie.
    """

    annotator: str
    choice: Literal[0, 1, "tie"]
    strength: Strength | None = None
    why: str | None = None
    at: str | None = None

    def swap(self) -> Vote:
        """The same vote with the two responses exchanged."""
        if self.choice == "tie":
            return self
        return dataclasses.replace(self, choice=0 if self.choice == 1 else 1)


@dataclass(frozen=True, config=_STRICT)
class Comparison(_Prompted):
    """Two responses to one prompt and the votes on them.

    Code calls the responses ``first`` and ``second``, in the order of the record. "Chosen" and
    "rejected" are the words of loss formulas and of other people's files.
    """

    id: str
    prompt: Conversation
    responses: list[Response]
    votes: list[Vote] = dataclasses.field(default_factory=list)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.responses) != 2:
            raise ValueError(f"a comparison has 2 responses, found {len(self.responses)}")

    @property
    def first(self) -> Response:
        return self.responses[0]

    @property
    def second(self) -> Response:
        return self.responses[1]

    def swap(self) -> Comparison:
        """The same comparison with the two responses exchanged. The votes follow, and so does
        ``meta["shown"]``, the order in which annotators saw the responses.
        """
        votes, meta = [vote.swap() for vote in self.votes], self.meta
        if "shown" in meta:
            meta = meta | {"shown": [1 - index for index in meta["shown"]]}
        return dataclasses.replace(self, responses=self.responses[::-1], votes=votes, meta=meta)


@dataclass(frozen=True, config=_STRICT)
class Thumb:
    """One annotator's thumb on a single response."""

    annotator: str
    value: Literal["up", "down"]
    why: str | None = None
    at: str | None = None


@dataclass(frozen=True, config=_STRICT)
class Rating(_Prompted):
    """One response with its thumbs."""

    id: str
    prompt: Conversation
    response: Response
    votes: list[Thumb] = dataclasses.field(default_factory=list)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class BestOf(_Prompted):
    """Several responses to one prompt, and the indices of the good ones. Choosing the best of n is
    tested on it.
    """

    id: str
    prompt: Conversation
    responses: list[Response]
    best: list[Index]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.responses)
        if (
            not self.best
            or len(set(self.best)) >= count
            or not all(0 <= i < count for i in self.best)
        ):
            raise ValueError(
                f"of {count} responses some are good and some are not, found {self.best} as the"
                " good ones"
            )


@dataclass(frozen=True, config=_STRICT)
class ScoredResponse:
    """A response that a policy sampled, with everything that was measured of it.

    ``None``: not measured. ``kl`` is the log-ratio to the SFT model in nats, ``tokens`` a count.
    """

    text: str
    turns: list[Message] = dataclasses.field(default_factory=list)
    finished: bool | None = None
    """False where the sampler cut it before its end."""
    tokens: int | None = None
    reward: float | None = None
    kl: float | None = None
    gold: float | None = None

    @property
    def response(self) -> Response:
        """The response alone."""
        return Response(self.text, turns=self.turns)


@dataclass(frozen=True, config=_STRICT)
class SampledPrompt(_Prompted):
    """A prompt with the responses that one policy sampled: a row of ``responses.jsonl``."""

    id: str
    prompt: Conversation
    responses: list[ScoredResponse]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class SampledConversation(_Prompted):
    """A prompt with one response of every policy."""

    id: str
    prompt: Conversation
    responses: dict[str, ScoredResponse]


@dataclass(frozen=True, config=_STRICT)
class TrainingSample(_Prompted):
    """A response that training sampled at one step: a row of ``samples.jsonl``."""

    step: int
    id: str
    prompt: Conversation
    response: str
    reward: float | None = None
    kl: float | None = None
    """Nats."""
    length: int | None = None
    """Tokens."""
    finished: bool | None = None


R = TypeVar("R")
Record = Prompt | Demonstration | Comparison | Rating | BestOf
Sampled = SampledPrompt | SampledConversation


def to_dict(record: Record | Sampled | Response) -> dict[str, Any]:
    """A record as a dictionary ready for JSON. ``from_dict`` reads it back."""
    row: dict[str, Any] = {}
    kind: Any = type(record)
    for name in _names(kind):
        value = getattr(record, name)
        if name == "turns" and not value:
            continue
        row[name] = value if isinstance(value, str) else _json(value)
        if isinstance(value, Conversation) and value.tools:
            row["tools"] = value.tools
    if isinstance(record, Demonstration):
        # What a file calls the prompt is context, unless it says otherwise.
        for turn, written in zip(record.prompt, row["prompt"], strict=True):
            if turn.role == "assistant":
                written["learn"] = turn.learn
    return row


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _json(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, Response):
        return to_dict(value)
    if isinstance(value, ScoredResponse):
        row = {name: _json(getattr(value, name)) for name in _names(ScoredResponse)}
        return {name: item for name, item in row.items() if item is not None and item != []}
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, Vote | Thumb):
        kind: Any = type(value)
        return {name: getattr(value, name) for name in _names(kind)}
    return [_json(item) for item in value] if isinstance(value, list) else value


def from_dict(kind: type[R], row: dict[str, Any]) -> R:
    """A record of ``kind`` from a dictionary. Raises ``ValueError`` naming the field and its
    value.
    """
    try:
        return TypeAdapter(kind).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        problem = _PROBLEMS.get(first["type"], first["msg"])
        raise ValueError(
            f"field '{where}': {problem} (found {str(first['input'])[:80]!r})"
        ) from None


_PROBLEMS = {
    "unexpected_keyword_argument": (
        "is no key that a record has here: take it out, or put it into meta"
    ),
    "missing": "is missing",
}
"""Messages in place of pydantic's, by its type of error."""
