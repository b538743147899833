"""prefloop's own layouts: records as it writes them, answers, judgments, references, best of n."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefloop import records
from prefloop.console import listed
from prefloop.data import check
from prefloop.data.answers import answer_of
from prefloop.data.check import BadRow, check_text, number_of, truth_of
from prefloop.data.prompts import context, prompt_of, turns_at
from prefloop.data.responses import demonstration, two_responses, whole_prompt
from prefloop.data.row import Row
from prefloop.data.surroundings import around, stands_around
from prefloop.records import BestOf, Comparison, Demonstration, Prompt, Rating, Record, Response, Vote

OWN_KEYS = frozenset({"id", "prompt", "tools", "response", "responses", "votes", "best", "turns", "meta"})
_RESPONSE_KEYS = frozenset({"text", "source", "meta", "turns"})
_VERDICTS = ("winner", "preferred", "preference", "choice", "label", "better", "chosen", "rejected")
GOLD = ("best", "gold", "scores")
_FIELD = re.compile(r"field '([^']*)': (.*)", re.DOTALL)
_CHOICES: dict[Any, Any] = {"a": 0, "b": 1, "tie": "tie"}


def is_prefloop(row: Mapping[str, Any]) -> bool:
    """Whether a row is a record as prefloop writes it."""
    if is_best_of(row) or "prompt" not in row:
        return False
    if "responses" in row or "votes" in row or isinstance(row.get("response"), dict):
        return True
    return {"id", "prompt"} <= row.keys() <= OWN_KEYS


def is_best_of(row: Mapping[str, Any]) -> bool:
    """Whether a row has several responses of which some are good, as texts."""
    if "prompt" not in row:
        return False
    if "chosen" in row and "rejected" in row:
        return _strings(row["chosen"]) or _strings(row["rejected"])
    return _strings(row.get("responses")) and any(key in row for key in GOLD)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def read_prefloop(row: Row) -> Record:
    """A record as ``to_dict`` writes it."""
    kind: type[Any]
    if "responses" in row:
        kind = BestOf if "best" in row else Comparison
    elif "votes" in row or isinstance(row.get("response"), dict):
        kind = Rating
    else:
        kind = Demonstration if "response" in row else Prompt
    prompt = row.take("prompt")
    if kind is Demonstration:
        if isinstance(row["response"], list) or (isinstance(prompt, str) and isinstance(row["response"], str)):
            return demonstration(row, "response")
        prompt = _context(prompt)
    tools = row.get("tools")
    if isinstance(prompt, str) or stands_around(row):
        conversation = around(row, turns_at(row, "prompt", prompt))
        prompt, tools = [turn.to_dict() for turn in conversation], conversation.tools
    votes = row.get("votes")
    for index, vote in enumerate(votes if isinstance(votes, list) else []):
        # True equals 1 in Python, so the typed check below would read it as a vote for the second response.
        if isinstance(vote, dict) and isinstance(vote.get("choice"), bool):
            raise BadRow(f"votes.{index}.choice", "is a true/false, expected 0, 1 or 'tie'")
    row.use(*OWN_KEYS)
    own = {key: value for key, value in row.items() if key in OWN_KEYS and key != "tools"}
    if tools:
        own["tools"] = tools
    if kind is Comparison and not row.get("votes") and (said := row.first(*_VERDICTS)):
        raise BadRow(
            said,
            'seems to say which response is better; say it as votes: [{"annotator": "name", "choice": 0, 1 or "tie"}]',
        )
    if isinstance(own.get("responses"), list):
        own["responses"] = [_response(item, row) for item in own["responses"]]
    elif kind is Rating and "response" in own:
        own["response"] = _response(own["response"], row)
    try:
        record: Record = records.from_dict(kind, {**own, "id": row.id, "prompt": prompt, "meta": row.meta()})
    except ValueError as error:
        found = _FIELD.fullmatch(str(error))
        raise BadRow(*(found.groups() if found else ("", str(error)))) from None
    check.check_record(record)
    return record


def _response(item: Any, row: Row) -> Any:
    """A response as a record has it: a text stands for itself, keys that it has besides go to its meta."""
    if isinstance(item, str):
        return {"text": item}
    if not isinstance(item, dict) or not isinstance(item.get("meta", {}), dict):
        return item
    others = {key: value for key, value in item.items() if key not in _RESPONSE_KEYS}
    if not others:
        return item
    row.say(f"keys of responses kept in their meta: {listed(others)}")
    return {key: item[key] for key in item.keys() & _RESPONSE_KEYS} | {"meta": others | item.get("meta", {})}


def _context(prompt: Any) -> Any:
    """A demonstration's prompt, whose assistant turns are learnt where ``records.to_dict`` has said so."""
    if not isinstance(prompt, list):
        return prompt
    return [
        {**turn, "learn": turn.get("learn", False)}
        if isinstance(turn, dict) and turn.get("role") == "assistant"
        else turn
        for turn in prompt
    ]


def read_answer(row: Row) -> Record:
    """A model's answer, one of perhaps several to its prompt."""
    prompt = prompt_of(row)
    answer = answer_of(row, "response", prompt)
    if (finished := truth_of(row.get("finished"))) is not None:
        row["finished"] = finished
    check.check_finished(row, "finished")
    row.evidence("finished", "tokens")
    return Demonstration.of(row.id, context(whole_prompt(prompt, [answer], ["response"])), answer.turns, row.meta())


def read_best_of(row: Row) -> Record:
    """Several responses of which some are good."""
    prompt = prompt_of(row)
    if "chosen" in row:
        good, bad = (_texts(row, key) for key in ("chosen", "rejected"))
        texts, best = [*good, *bad], list(range(len(good)))
    else:
        texts = _texts(row, "responses")
        best = _gold(row, len(texts))
    row.use("best", "gold")
    row.evidence("scores")
    responses = [Response(text, row.source) for text in texts]
    try:
        return BestOf(row.id, prompt, responses, best, row.meta())
    except ValueError as error:
        raise BadRow("best", str(error).rpartition("Value error, ")[2].partition(" [type")[0]) from None


def _gold(row: Row, count: int) -> list[int]:
    """Which responses are good: an index, a list of them, or those with the highest of one score a response."""
    key = row.first(*GOLD)
    if key is None:
        raise BadRow("best", f"is missing: nothing says which response is good (one of {', '.join(GOLD)})")
    value = row[key]
    if key == "scores":
        numbers = [number_of(item) for item in value] if isinstance(value, list) else []
        known = [number for number in numbers if number is not None]
        if len(known) != count or len(numbers) != count:
            raise BadRow(key, f"is no list of {count} numbers, one for each response")
        return [i for i, number in enumerate(known) if number == max(known)]
    indices = value if isinstance(value, list) else [value]
    whole = [number for i in indices if isinstance(number := number_of(i), int)]
    if len(whole) != len(indices):
        raise BadRow(key, f"is {check.json_type(value)}, expected the index of the best response or a list of them")
    return whole


def _texts(row: Row, key: str) -> list[str]:
    value = row.take(key)
    listed = value if isinstance(value, list) else [value]
    names = [f"{key}.{i}" for i in range(len(listed))]
    return [check_text(row.without_end(check_text(text, n)), n) for text, n in zip(listed, names, strict=True)]


def read_judgments(row: Row) -> Record:
    """Two responses and what people said of them."""
    prompt = prompt_of(row, "prompt")
    prompt, responses = two_responses(row, prompt, "response_a", "response_b")
    key = row.first("human", "label") or "human"
    given = row.take(key)
    votes = given if isinstance(given, list) else [given]
    for index, vote in enumerate(votes):
        if not isinstance(vote, str) or vote not in _CHOICES:
            name = f"human.{index}" if key == "human" else "label"
            raise BadRow(name, f"is {str(vote)[:40]!r}, expected a, b or tie")
    row.use("human", "label")
    named = [Vote(f"{row.source}#{index}", _CHOICES[vote]) for index, vote in enumerate(votes)]
    return Comparison(row.id, prompt, responses, named, row.meta())


def read_references(row: Row) -> Record:
    """A prompt with the answers that count as right."""
    key = "references" if row.get("references") else "reference"
    value = row.take(key)
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise BadRow(key, "is an empty list")
    references = [check_text(text, f"{key}.{index}") for index, text in enumerate(texts)]
    row.use("references", "reference")
    return Demonstration(row.id, context(prompt_of(row)), references[0], row.meta() | {"references": references})
