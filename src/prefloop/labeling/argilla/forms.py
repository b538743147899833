"""The two forms of questions for annotators, and the conversion of a record for the screen and of
an answer back.

Which response is left is drawn for each record from its id and the dataset's name, so that a second
push draws the same. What the screen does not show (the order, sources, metadata) is kept in the
record's hidden metadata, which Argilla's pages and annotators' queues leave out. Fields are plain
text, because in rendered Markdown a response could decide how it looks next to the other. Argilla
2.8 puts the text of such a field into its page as HTML, so that a response could run a script in
the annotator's session; texts are therefore escaped when they are sent. No question has a
suggestion, because Argilla would preselect it and send it with a discard.

Tools, thoughts, tool calls and their results are messages of the page like any other
(``prefloop.data.readable``). What is more than plain text is also kept exactly in the hidden
metadata, and read back from there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from prefloop.data.argilla_own import shown
from prefloop.data.argilla_votes import HIDDEN, STRENGTHS, ArgillaAnswer, Item
from prefloop.data.readable import Part, prompt_parts
from prefloop.data.replies import same_as
from prefloop.errors import DataError
from prefloop.records import Comparison, Message, Rating, Response, Thumb, Vote, identity, tools_of

if TYPE_CHECKING:
    import argilla as rg

LONGEST = 20_000  # characters of a message; responses stand in text fields, which have no limit
MOST_MESSAGES = 500
LONGEST_ROLE = 20
MOST_HIDDEN = 1_000_000
"""Most characters of JSON for a record's exact turns. Argilla sets no limit, but every page that
lists records carries them.
"""
Kind = Literal["comparisons", "ratings"]
KINDS: tuple[Kind, ...] = ("comparisons", "ratings")
R = TypeVar("R", bound=Comparison | Rating)


def settings(kind: Kind, client: rg.Argilla) -> rg.Settings:
    """The fields and questions of a dataset for such records, as objects of Argilla's SDK."""
    import argilla as rg

    prompt = rg.ChatField("prompt", title="Prompt", use_markdown=False, _client=client)
    why = rg.TextQuestion("why", title="Why? (optional)", required=False, client=client)
    if kind == "ratings":
        fields = [prompt, rg.TextField("response", title="Response", client=client)]
        thumbs = {"up": "thumb up", "down": "thumb down"}
        questions = [
            rg.LabelQuestion("thumb", thumbs, title="Is this a good response?", client=client),
            why,
        ]
    else:
        fields = [
            prompt,
            *(rg.TextField(f"response_{x.lower()}", title=x, client=client) for x in "AB"),
        ]
        questions = [
            rg.LabelQuestion(
                "preferred", ["A", "B", "tie"], title="Which response is better?", client=client
            ),
            rg.LabelQuestion(
                "strength",
                list(STRENGTHS),
                title="How much better? (optional)",
                required=False,
                client=client,
            ),
            why,
        ]
    # Argilla's pages and annotators' queues leave out metadata that no setting names.
    return rg.Settings(fields=fields, questions=questions, allow_extra_metadata=True)


def describe(fields: Iterable[Any], questions: Iterable[Any]) -> dict[str, str]:
    """Name → type of fields and questions (the SDK's models), with the values that a question
    offers, to compare two datasets.
    """
    types = {f"field {field.name}": str(field.settings.type) for field in fields}
    for question in questions:
        options = "/".join(
            sorted(str(option["value"]) for option in getattr(question.settings, "options", ()))
        )
        types[f"question {question.name}"] = " ".join(
            filter(None, [question.settings.type, options])
        )
    return types


def kind_of(record: Comparison | Rating) -> Kind:
    """The form that a record needs."""
    return "comparisons" if isinstance(record, Comparison) else "ratings"


def is_swapped(dataset: str, id: str) -> bool:
    """Whether the second response of a comparison is shown as A."""
    return bool(hashlib.sha256(f"{dataset}\0{id}".encode("utf-8", "surrogatepass")).digest()[0] & 1)


def digest(record: Comparison | Rating) -> str:
    """16 hex digits that identify what annotators see: the prompt and the responses in their order.
    Sources, metadata and votes do not count.
    """
    responses = record.responses if isinstance(record, Comparison) else [record.response]
    asked = [identity(record.prompt), [same_as(response) for response in responses]]
    return hashlib.sha256(json.dumps(asked).encode("ascii")).hexdigest()[:16]


def untakeable(records: Iterable[R]) -> list[tuple[R, str]]:
    """The records that Argilla does not take, each with the reason."""
    problems = ((record, _problem(record)) for record in records)
    return [(record, why) for record, why in problems if why is not None]


def _problem(record: Comparison | Rating) -> str | None:
    messages = _on_screen(record.prompt)
    if len(messages) > MOST_MESSAGES:
        return f"the prompt has {len(messages)} messages, Argilla takes {MOST_MESSAGES} at most"
    for number, (who, text) in enumerate(messages, 1):
        sent = len(shown(text))
        if not 1 <= sent <= LONGEST:
            escaped = "" if sent == len(text) else " (&, < and > are sent as 4 or 5)"
            named = "" if who in ("system", "user", "assistant") else f" ({who})"
            return (
                f"message {number}{named} of the prompt has {sent:,} characters{escaped}, Argilla"
                f" takes 1 to {LONGEST:,}"
            )
    responses = record.responses if isinstance(record, Comparison) else [record.response]
    exact = len(json.dumps([_exact(record.prompt), [_turns(response) for response in responses]]))
    if exact > MOST_HIDDEN:
        return (
            f"its tools, tool calls and thoughts take {exact:,} characters of metadata,"
            f" {MOST_HIDDEN:,} at most are sent"
        )
    return None


def to_rg(record: Comparison | Rating, dataset: str) -> rg.Record:
    """The record as an object of Argilla's SDK, without its votes."""
    import argilla as rg

    hidden: dict[str, Any] = {
        "digest": digest(record),
        "meta": record.meta,
        **_exact(record.prompt),
    }
    messages = [{"role": who, "content": shown(text)} for who, text in _on_screen(record.prompt)]
    fields: dict[str, Any] = {"prompt": messages}
    if isinstance(record, Comparison):
        hidden["swapped"] = is_swapped(dataset, record.id)
        on_page = record.swap() if hidden["swapped"] else record
        fields |= {
            name: shown(r.text)
            for name, r in zip(("response_a", "response_b"), on_page.responses, strict=True)
        }
        hidden["responses"] = [_unseen(response) for response in record.responses]
    else:
        fields["response"] = shown(record.response.text)
        hidden["responses"] = [_unseen(record.response)]
    return rg.Record(id=record.id, fields=fields, metadata={HIDDEN: hidden})


def _on_screen(prompt: list[Message]) -> list[Part]:
    """The messages of the page. Argilla takes no empty message and no long role."""
    return [_fitting(part) for part in prompt_parts(prompt)]


def _fitting(part: Part) -> Part:
    role = part.who.partition(" ")[0]
    text = part.text or ("" if role in ("system", "user") else "(empty)")
    if len(part.who) <= LONGEST_ROLE:
        return Part(part.who, text)
    return Part(role, f"[{part.who}]\n{text}")


def _exact(prompt: list[Message]) -> dict[str, Any]:
    """The exact turns and tools of a prompt, where the page shows anything but its plain texts."""
    tools, turns = tools_of(prompt), [message.to_dict() for message in prompt]
    plain = all(turn.keys() == {"role", "content"} and turn["content"] for turn in turns)
    return {} if plain and not tools else {"prompt": turns, "tools": tools}


def _turns(response: Response) -> dict[str, Any]:
    return {"turns": [turn.to_dict() for turn in response.turns]} if response.turns else {}


def _unseen(response: Response) -> dict[str, Any]:
    return {"source": response.source, "meta": response.meta, **_turns(response)}


def read_guidelines(path: Path) -> str:
    """Read guidelines for annotators in Markdown. Raises ``DataError`` for a file that is missing,
    is no text, or is longer than Argilla takes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if not text.strip() or len(text) > 10_000:
        raise DataError(
            f"{path} has {len(text):,} characters; Argilla takes guidelines of 1 to 10,000"
        )
    return text


def of_prefloop(item: Mapping[str, Any]) -> bool:
    """Whether a record on the server was pushed by prefloop, and not added by somebody else."""
    return bool(item.get("external_id")) and HIDDEN in (item.get("metadata") or {})


def id_of(item: Mapping[str, Any]) -> str:
    """A record's id: the one with which it was logged, else Argilla's own."""
    return str(item.get("external_id") or item["id"])


def to_answers(item: Mapping[str, Any], names: Mapping[str, str]) -> Item:
    """A record of the server with its answers, oldest first. ``names`` maps user ids to names.

    ``at`` is when the annotator last changed the answer, UTC.
    """
    given = sorted(
        item.get("responses") or [], key=lambda answer: (answer["inserted_at"], answer["id"])
    )
    answers = [
        ArgillaAnswer(
            names.get(answer["user_id"], answer["user_id"]),
            answer["status"],
            {name: value.get("value") for name, value in (answer["values"] or {}).items()},
            _moment(answer["updated_at"]),
        )
        for answer in given
    ]
    return Item(item["fields"], answers, dict(item.get("metadata") or {}))


def _moment(written: str) -> str:
    """A time of Argilla with its zone: it writes UTC without saying so."""
    moment = datetime.datetime.fromisoformat(written)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).isoformat()


def to_values(vote: Vote | Thumb, swapped: bool) -> dict[str, Any]:
    """The answer on screen that becomes ``vote`` when it is pulled. Raises ``DataError`` for a
    strength other than 1, 2 and 3.
    """
    if isinstance(vote, Thumb):
        chosen: dict[str, str | None] = {"thumb": vote.value}
    else:
        on_page = vote.swap() if swapped else vote
        words = {number: word for word, number in STRENGTHS.items()}
        if vote.strength is not None and vote.strength not in words:
            raise DataError(
                f"strength {vote.strength:g} is none of"
                f" {', '.join(f'{n:g} ({w})' for n, w in words.items())}"
            )
        strength = None if vote.strength is None else words[vote.strength]
        chosen = {
            "preferred": "tie" if on_page.choice == "tie" else "AB"[on_page.choice],
            "strength": strength,
        }
    return {name: {"value": value} for name, value in {**chosen, "why": vote.why}.items() if value}
