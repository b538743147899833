"""What annotators see and are asked: the two forms, and the way of a record to the screen and of an answer back.

Left and right are drawn for each record from its id and the dataset's name, so that a second push draws the same. What the screen does not
show (which one is which, sources, metadata) travels in the record's hidden metadata, which Argilla's pages and annotators' queues leave
out. Fields are plain text: rendered Markdown would let a response decide how it looks beside the other. Argilla 2.8 puts the text of such
a field into its page as HTML, so that a response could run a script in the annotator's session; texts are therefore escaped on the way
there. No question has a suggestion: Argilla would tick it beforehand and send it along with a discard.

Tools, thoughts, tool calls and their results are messages of the page like any other (``prefloop.readable``). What is more than plain text
travels exactly in the hidden metadata too, and is read back from there.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from prefloop.errors import DataError
from prefloop.readable import Part, prompt_parts
from prefloop.records import (
    Comparison,
    Conversation,
    Message,
    Rating,
    Response,
    Thumb,
    Vote,
    from_dict,
    identity,
    tools_of,
)
from prefloop.replies import same_as

HIDDEN = "prefloop"
LONGEST = 20_000  # characters of a message; responses stand in text fields, which have no limit
MOST_MESSAGES = 500
LONGEST_ROLE = 20
MOST_HIDDEN = 1_000_000
"""Characters of JSON that hold a record's exact turns. Argilla sets no limit; every page that lists records carries them."""
STRENGTHS: dict[str, int | float] = {"slight": 1, "clear": 2, "strong": 3}
Kind = Literal["comparisons", "ratings"]
R = TypeVar("R", bound=Comparison | Rating)


def _field(name: str, title: str, type: str) -> dict[str, Any]:
    return {"name": name, "title": title, "required": True, "settings": {"type": type, "use_markdown": False}}


def _choice(name: str, title: str, required: bool, options: Mapping[str, str]) -> dict[str, Any]:
    settings = {"type": "label_selection", "options": [{"value": v, "text": t} for v, t in options.items()]}
    return {"name": name, "title": title, "required": required, "settings": settings}


_WHY = {
    "name": "why",
    "title": "Why? (optional)",
    "required": False,
    "settings": {"type": "text", "use_markdown": False},
}


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields and questions of a dataset, as Argilla's REST API takes them."""

    fields: list[dict[str, Any]]
    questions: list[dict[str, Any]]

    def describe(self) -> dict[str, str]:
        """Name → type of every field and question, to compare with a dataset that is there."""
        return describe(self.fields, self.questions)


def describe(fields: list[dict[str, Any]], questions: list[dict[str, Any]]) -> dict[str, str]:
    """Name → type of fields and questions, with the values that a question lets choose."""
    found = {f"field {f['name']}": str(f["settings"]["type"]) for f in fields}
    for question in questions:
        options = "/".join(sorted(str(option["value"]) for option in question["settings"].get("options") or []))
        found[f"question {question['name']}"] = " ".join(filter(None, [question["settings"]["type"], options]))
    return found


FORMS: dict[Kind, Form] = {
    "comparisons": Form(
        [_field("prompt", "Prompt", "chat"), _field("response_a", "A", "text"), _field("response_b", "B", "text")],
        [
            _choice("preferred", "Which response is better?", True, {"A": "A", "B": "B", "tie": "tie"}),
            _choice("strength", "How much better? (optional)", False, {name: name for name in STRENGTHS}),
            _WHY,
        ],
    ),
    "ratings": Form(
        [_field("prompt", "Prompt", "chat"), _field("response", "Response", "text")],
        [_choice("thumb", "Is this a good response?", True, {"up": "thumb up", "down": "thumb down"}), _WHY],
    ),
}


def kind_of(record: Comparison | Rating) -> Kind:
    """The form for a record."""
    return "comparisons" if isinstance(record, Comparison) else "ratings"


def is_swapped(dataset: str, id: str) -> bool:
    """Whether the second response of a comparison stands under A."""
    return bool(hashlib.sha256(f"{dataset}\0{id}".encode("utf-8", "surrogatepass")).digest()[0] & 1)


def digest(record: Comparison | Rating) -> str:
    """16 hex digits of what annotators are asked about: prompt and responses in their order. Sources, metadata and votes may differ."""
    responses = record.responses if isinstance(record, Comparison) else [record.response]
    asked = [identity(record.prompt), [same_as(response) for response in responses]]
    return hashlib.sha256(json.dumps(asked).encode("ascii")).hexdigest()[:16]


def untakeable(records: Iterable[R]) -> list[tuple[R, str]]:
    """Those of the records that Argilla would not take, each with why."""
    problems = ((record, _problem(record)) for record in records)
    return [(record, why) for record, why in problems if why is not None]


def _problem(record: Comparison | Rating) -> str | None:
    messages = _on_screen(record.prompt)
    if len(messages) > MOST_MESSAGES:
        return f"the prompt has {len(messages)} messages, Argilla takes {MOST_MESSAGES} at most"
    for number, (who, text) in enumerate(messages, 1):
        sent = len(_shown(text))
        if not 1 <= sent <= LONGEST:
            escaped = "" if sent == len(text) else " (&, < and > are sent as 4 or 5)"
            named = "" if who in ("system", "user", "assistant") else f" ({who})"
            return f"message {number}{named} of the prompt has {sent:,} characters{escaped}, Argilla takes 1 to {LONGEST:,}"
    responses = record.responses if isinstance(record, Comparison) else [record.response]
    exact = len(json.dumps([_exact(record.prompt), [_turns(response) for response in responses]]))
    if exact > MOST_HIDDEN:
        return f"its tools, tool calls and thoughts take {exact:,} characters of metadata, {MOST_HIDDEN:,} at most are sent"
    return None


def to_item(record: Comparison | Rating, dataset: str) -> dict[str, Any]:
    """The record as Argilla's bulk endpoint takes it. Votes that it has already stay behind."""
    hidden: dict[str, Any] = {"digest": digest(record), "meta": record.meta, **_exact(record.prompt)}
    messages = [{"role": who, "content": _shown(text)} for who, text in _on_screen(record.prompt)]
    fields: dict[str, Any] = {"prompt": messages}
    if isinstance(record, Comparison):
        hidden["swapped"] = is_swapped(dataset, record.id)
        shown = record.swap() if hidden["swapped"] else record
        fields |= {name: _shown(r.text) for name, r in zip(("response_a", "response_b"), shown.responses, strict=True)}
        hidden["responses"] = [_unseen(response) for response in record.responses]
    else:
        fields["response"] = _shown(record.response.text)
        hidden["responses"] = [_unseen(record.response)]
    return {"external_id": record.id, "fields": fields, "metadata": {HIDDEN: hidden}}


def _on_screen(prompt: list[Message]) -> list[Part]:
    """The messages of the page. Argilla takes no empty one and no long role."""
    return [_fitting(part) for part in prompt_parts(prompt)]


def _fitting(part: Part) -> Part:
    role = part.who.partition(" ")[0]
    text = part.text or ("" if role in ("system", "user") else "(empty)")
    return Part(part.who, text) if len(part.who) <= LONGEST_ROLE else Part(role, f"[{part.who}]\n{text}")


def _exact(prompt: list[Message]) -> dict[str, Any]:
    """The turns and tools of a prompt of which the page shows more, or less, than plain texts."""
    tools, turns = tools_of(prompt), [message.to_dict() for message in prompt]
    plain = all(turn.keys() == {"role", "content"} and turn["content"] for turn in turns)
    return {} if plain and not tools else {"prompt": turns, "tools": tools}


def _turns(response: Response) -> dict[str, Any]:
    return {"turns": [turn.to_dict() for turn in response.turns]} if response.turns else {}


def _shown(text: str) -> str:
    """The HTML that looks like ``text``."""
    return html.escape(text, quote=False)


def _meant(shown: str) -> str:
    """The inverse of ``_shown``; ``html.unescape`` would go further than that."""
    return shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _unseen(response: Response) -> dict[str, Any]:
    return {"source": response.source, "meta": response.meta, **_turns(response)}


def read_guidelines(path: Path) -> str:
    """Guidelines for annotators, Markdown. Raises ``DataError`` for a file that is missing, is no text or is longer than Argilla takes."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if not text.strip() or len(text) > 10_000:
        raise DataError(f"{path} has {len(text):,} characters; Argilla takes guidelines of 1 to 10,000")
    return text


def of_prefloop(item: Mapping[str, Any]) -> bool:
    """Whether a record on the server was pushed by prefloop, rather than added by another hand."""
    return bool(item.get("external_id")) and HIDDEN in (item.get("metadata") or {})


def to_record(item: Mapping[str, Any], names: Mapping[str, str]) -> Comparison | Rating:
    """The record as it was pushed, with a vote of every submitted response, oldest first; ``names`` maps user ids to names.

    A comparison's ``meta["shown"]`` holds the indices of its responses in the order of the screen.

    ``at`` is when the annotator last changed the answer, UTC; ``strength`` is 1 (slight), 2 (clear) or 3 (strong).
    """
    fields, hidden = item["fields"], item["metadata"][HIDDEN]
    seen = [{"role": m["role"], "content": _meant(m["content"])} for m in fields["prompt"]]
    turns = [from_dict(Message, turn) for turn in hidden.get("prompt", seen)]
    prompt = Conversation(turns, hidden.get("tools", ()))
    answers = sorted(item.get("responses") or [], key=lambda answer: (answer["inserted_at"], answer["id"]))
    answers = [answer for answer in answers if answer["status"] == "submitted"]
    if "response" in fields:
        response = from_dict(Response, {"text": _meant(fields["response"]), **hidden["responses"][0]})
        thumbs = [_thumb(answer, names) for answer in answers]
        return Rating(item["external_id"], prompt, response, thumbs, hidden["meta"])
    texts = [_meant(fields["response_a"]), _meant(fields["response_b"])]
    if hidden["swapped"]:
        texts.reverse()
    both = zip(texts, hidden["responses"], strict=True)
    responses = [from_dict(Response, {"text": text, **unseen}) for text, unseen in both]
    votes = [_vote(answer, names) for answer in answers]
    if hidden["swapped"]:
        votes = [vote.swap() for vote in votes]
    shown = {"shown": [1, 0] if hidden["swapped"] else [0, 1]}
    return Comparison(item["external_id"], prompt, responses, votes, hidden["meta"] | shown)


def _vote(answer: Mapping[str, Any], names: Mapping[str, str]) -> Vote:
    """The vote in terms of the screen: 0 is A."""
    chosen = _value(answer, "preferred")
    choices: dict[str, Literal[0, 1, "tie"]] = {"A": 0, "B": 1, "tie": "tie"}
    if chosen not in choices:
        raise DataError(f"an answer to 'preferred' is {chosen!r}: A, B or tie was asked for")
    choice = choices[chosen]
    strength = STRENGTHS.get(_value(answer, "strength"))
    return Vote(_name(answer, names), choice, strength, _value(answer, "why") or None, _moment(answer["updated_at"]))


def _thumb(answer: Mapping[str, Any], names: Mapping[str, str]) -> Thumb:
    value = cast(Literal["up", "down"], _value(answer, "thumb"))
    return Thumb(_name(answer, names), value, _value(answer, "why") or None, _moment(answer["updated_at"]))


def _value(answer: Mapping[str, Any], question: str) -> str:
    return str((answer["values"].get(question) or {}).get("value") or "").strip()


def _name(answer: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return names.get(answer["user_id"], answer["user_id"])


def _moment(written: str) -> str:
    """Argilla writes UTC without saying so."""
    moment = datetime.datetime.fromisoformat(written)
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).isoformat()


def to_values(vote: Vote | Thumb, swapped: bool) -> dict[str, Any]:
    """The answer on screen that gives ``vote`` at pull. A strength must be 1, 2 or 3: ``DataError`` for another."""
    if isinstance(vote, Thumb):
        chosen: dict[str, str | None] = {"thumb": vote.value}
    else:
        shown = vote.swap() if swapped else vote
        words = {number: word for word, number in STRENGTHS.items()}
        if vote.strength is not None and vote.strength not in words:
            raise DataError(
                f"strength {vote.strength:g} is none of {', '.join(f'{n:g} ({w})' for n, w in words.items())}"
            )
        strength = None if vote.strength is None else words[vote.strength]
        chosen = {"preferred": "tie" if shown.choice == "tie" else "AB"[shown.choice], "strength": strength}
    return {name: {"value": value} for name, value in {**chosen, "why": vote.why}.items() if value}
