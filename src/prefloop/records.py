"""The nouns of the loop: what people wrote, what the model answered and how people voted.

Plain, frozen, JSON-serialisable. Votes are kept as they were cast; a soft label is always *derived* from them by a named
aggregation (``prefloop.labels``) and never stored in their place. This module imports nothing from the rest of prefloop.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, config=_STRICT)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, config=_STRICT)
class Prompt:
    """A conversation that ends where the assistant should answer. ``meta`` carries what a scorer may need."""

    id: str
    prompt: list[Message]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Demonstration:
    """A prompt with the answer a person would like to see."""

    id: str
    prompt: list[Message]
    response: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Response:
    """One answer and where it came from (a model, a file, a person)."""

    text: str
    source: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Vote:
    """One annotator's choice between the responses of a comparison: the index of the better one, or a tie."""

    annotator: str
    choice: Literal[0, 1, "tie"]
    strength: int | float | None = None
    why: str | None = None
    at: str | None = None

    def swap(self) -> Vote:
        """The same vote after the two responses changed places."""
        return self if self.choice == "tie" else dataclasses.replace(self, choice=0 if self.choice == 1 else 1)


@dataclass(frozen=True, config=_STRICT)
class Comparison:
    """Two responses to one prompt and the votes on them."""

    id: str
    prompt: list[Message]
    responses: list[Response]
    votes: list[Vote] = dataclasses.field(default_factory=list)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.responses) != 2:
            raise ValueError(f"a comparison has 2 responses, found {len(self.responses)}")

    def swap(self) -> Comparison:
        """The same comparison with the responses in the other order; votes follow, and so does ``meta["shown"]``, the order of showing."""
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
class Rating:
    """One response and the thumbs it got."""

    id: str
    prompt: list[Message]
    response: Response
    votes: list[Thumb] = dataclasses.field(default_factory=list)
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class BestOf:
    """Several responses to one prompt and which of them are good, by index: what choosing the best of n is tested on."""

    id: str
    prompt: list[Message]
    responses: list[Response]
    best: list[int]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.responses)
        if not self.best or len(set(self.best)) >= count or not all(0 <= i < count for i in self.best):
            raise ValueError(f"of {count} responses some are good and some are not, found {self.best} as the good ones")


R = TypeVar("R")
Record = Prompt | Demonstration | Comparison | Rating | BestOf


def to_dict(record: Record | Response) -> dict[str, Any]:
    """JSON-ready dictionary of a record."""
    return dataclasses.asdict(record)


def from_dict(kind: type[R], row: dict[str, Any]) -> R:
    """Build a record of ``kind`` from a dictionary; raises ``ValueError`` naming the field and what was found."""
    try:
        return TypeAdapter(kind).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        raise ValueError(f"field '{where}': {first['msg']} (found {str(first['input'])[:80]!r})") from None
