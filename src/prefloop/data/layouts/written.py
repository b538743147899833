"""Read prefloop's own records: those that ``records.to_dict`` wrote, which are taken as they are,
and those that people wrote by hand or that other files happen to hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from prefloop import records
from prefloop.base.console import listed
from prefloop.data import check
from prefloop.data.answers import Answer, answer_in
from prefloop.data.check import BadRow, field_of, json_type
from prefloop.data.judged import thumb_column, verdict
from prefloop.data.layouts.own import is_best_of
from prefloop.data.messages import is_messages, messages_of
from prefloop.data.prompts import context, prompt_of
from prefloop.data.responses import demonstration, imitated, whole_prompt
from prefloop.data.row import Row
from prefloop.data.tools import parsed
from prefloop.records import (
    BestOf,
    Comparison,
    Conversation,
    Demonstration,
    Prompt,
    Rating,
    Record,
    Response,
    Role,
)

OWN_KEYS = frozenset(
    {"id", "prompt", "tools", "response", "responses", "votes", "best", "turns", "meta"}
)
_RESPONSE_KEYS = frozenset({"text", "source", "meta", "turns"})
_MESSAGE_KEYS = frozenset(
    {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "learn"}
)
_ROLES = get_args(Role)
_VERDICTS = ("winner", "preferred", "preference", "choice", "label", "better", "chosen", "rejected")
_THUMBS = (
    'votes on one response are written [{"annotator": "ann", "value": "up"}] (or "down"); a row'
    ' with one thumb needs no votes: {"prompt": "…", "response": "…", "label": true}'
)
_FIELD = re.compile(r"field '([^']*)': (.*)", re.DOTALL)


def is_prefloop(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of one of prefloop's records."""
    if is_best_of(row) or "prompt" not in row:
        return False
    if "responses" in row or isinstance(row.get("votes"), list) or holds_response(row):
        return True
    return {"id", "prompt"} <= row.keys() <= OWN_KEYS


def holds_response(row: Mapping[str, Any]) -> bool:
    """Whether the answer of a row is in the form of prefloop's responses, with text or turns, and
    is neither a text nor a message.
    """
    return _is_response(row.get("response"))


def _is_response(value: Any) -> bool:
    """Whether a value is an object that holds a response and no message."""
    return (
        isinstance(value, dict)
        and ("text" in value or "turns" in value)
        and not is_messages([value])
    )


def is_written(row: Mapping[str, Any]) -> bool:
    """Whether every key of a row is what ``records.to_dict`` writes, so that no other convention
    has to be considered.
    """
    if not {"id", "prompt"} <= row.keys() <= OWN_KEYS or not _are_turns(row["prompt"]):
        return False
    if not isinstance(row.get("meta"), dict) and not any("learn" in turn for turn in row["prompt"]):
        return False
    answers = row.get("responses", [row["response"]] if "response" in row else [])
    if not isinstance(answers, list) or not _are_tools(row.get("tools", [])):
        return False
    if all(isinstance(answer, str) for answer in answers):
        return "responses" not in row and "votes" not in row and _are_turns(row.get("turns", []))
    return all(
        isinstance(answer, dict)
        and {"text", "source", "meta"} <= answer.keys() <= _RESPONSE_KEYS
        and isinstance(answer["text"], str)
        and _are_turns(answer.get("turns", []))
        for answer in answers
    )


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and {"role", "content"} <= turn.keys() <= _MESSAGE_KEYS
        and turn["role"] in _ROLES
        and isinstance(turn["content"], str)
        and isinstance(turn.get("learn", True), bool)
        and all(
            isinstance(turn.get(key, ""), str)
            for key in ("reasoning_content", "tool_call_id", "name")
        )
        and _are_calls(turn.get("tool_calls", []))
        for turn in value
    )


def _are_calls(value: Any) -> bool:
    functions = (
        [call.get("function") if isinstance(call, dict) else None for call in value]
        if isinstance(value, list)
        else [None]
    )
    return all(
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and _are_arguments(function.get("arguments"))
        for function in functions
    )


def _are_arguments(value: Any) -> bool:
    """Whether a value is an object, or a text that holds none. JSON in a text is a form of other
    files.
    """
    return isinstance(value, dict) or (
        isinstance(value, str) and not isinstance(parsed(value), dict)
    )


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in value
    )


def read_prefloop(row: Row) -> Record:
    """A record, taken as it is where prefloop wrote it, else read as any other row is."""
    kind: type[Any]
    if "responses" in row:
        kind = BestOf if "best" in row else Comparison
    elif isinstance(row.get("votes"), list) or holds_response(row):
        kind = Rating
    else:
        kind = Demonstration if "response" in row else Prompt
    if is_written(row):
        row.use(*OWN_KEYS)
        own = {key: value for key, value in row.items() if key in OWN_KEYS}
        if kind is Demonstration:
            own["prompt"] = _context(own["prompt"])
        return _record(kind, own, row)
    # Turns that are no list are another file's column, such as a count of turns.
    if kind is Demonstration and not (isinstance(row.get("turns"), list) and row["turns"]):
        return demonstration(row, "response", "prompt")
    prompt = prompt_of(row, "prompt")
    if kind is Demonstration:
        item = {"text": row.take("response"), "turns": row.take("turns")}
        response, _ = _response(item, "response", prompt, row)
        return imitated(row, context(prompt), records.answer_turns(response))
    if kind is Prompt:
        return Prompt(row.id, prompt, row.meta())
    if kind is Comparison and not row.get("votes") and (column := row.first(*_VERDICTS)):
        raise BadRow(
            column,
            'seems to say which response is better; say it as votes: [{"annotator": "name",'
            ' "choice": 0, 1 or "tie"}]',
        )
    if kind is Rating:
        items, names = [row.take("response")], ["response"]
    else:
        items = row.take("responses")
        if not isinstance(items, list):
            raise BadRow("responses", f"is {json_type(items)}, expected a list of responses")
        names = [f"responses.{index}" for index in range(len(items))]
    pairs = [_response(item, name, prompt, row) for item, name in zip(items, names, strict=True)]
    prompt = whole_prompt(prompt, [answer for _, answer in pairs], names)
    responses = [records.to_dict(response) for response, _ in pairs]
    row.use("votes", *(["best"] if kind is BestOf else []))
    kept = ("votes", "best") if kind is BestOf else ("votes",)
    own = {key: row[key] for key in kept if key in row}
    own |= {"response": responses[0]} if kind is Rating else {"responses": responses}
    if kind is Rating and "votes" not in row and thumb_column(row) is not None:
        own["votes"] = [{"annotator": row.source, "value": "up" if verdict(row) else "down"}]
    return _record(
        kind, {**own, "prompt": [turn.to_dict() for turn in prompt], "tools": prompt.tools}, row
    )


def _record(kind: type[Any], own: dict[str, Any], row: Row) -> Record:
    votes = own.get("votes")
    for index, vote in enumerate(votes if isinstance(votes, list) else []):
        # True equals 1 in Python, so the typed check below would read it as a vote for the second
        # response.
        if isinstance(vote, dict) and isinstance(vote.get("choice"), bool):
            raise BadRow(f"votes.{index}.choice", "is a true/false, expected 0, 1 or 'tie'")
        strength = vote.get("strength") if isinstance(vote, dict) else None
        if isinstance(strength, int | float) and strength < 0:
            raise BadRow(
                f"votes.{index}.strength",
                "is less than 0: by it the other response may be the better one",
            )
    try:
        record: Record = records.from_dict(kind, {**own, "id": row.id, "meta": row.meta()})
    except ValueError as error:
        match = _FIELD.fullmatch(str(error))
        field, reason = match.groups() if match else ("", str(error))
        if kind is Rating and field.startswith("votes"):
            # For an item that is no object, the check's message is in Python's terms.
            reason = f"{'is no vote' if 'instance of' in reason else reason}: {_THUMBS}"
        raise BadRow(field, reason) from None
    check.check_record(record)
    return record


def _response(item: Any, name: str, prompt: Conversation, row: Row) -> tuple[Response, Answer]:
    """A response, given as a text, a message, or an object with text or turns. Other keys of the
    object go to its meta.
    """
    if isinstance(item, str):
        answer = answer_in(row, item, name, prompt)
        return Response.of(answer.turns), answer
    if not isinstance(item, dict):
        raise BadRow(name, f"is {json_type(item)}, expected text or an object with 'text'")
    if is_messages([item]):
        answer = answer_in(row, item, name, prompt)
        return Response.of(answer.turns, row.source), answer
    own, source = item.get("meta", {}), item.get("source", "")
    if not isinstance(source, str):
        raise BadRow(f"{name}.source", f"is {json_type(source)}, expected text")
    others = {key: value for key, value in item.items() if key not in _RESPONSE_KEYS}
    if others:
        row.say(f"keys of responses kept in their meta: {listed(others)}")
    meta = others | (own if isinstance(own, dict) else {"meta": own})
    if item.get("turns") not in (None, []):
        turns = messages_of(item["turns"], f"{name}.turns", row)
        text = item.get("text", "")
        if text and text != records.transcript(turns):
            raise BadRow(
                f"{name}.text", "is not what its turns say: leave the text empty, or the turns out"
            )
        return Response.of(turns, source, meta), Answer(turns, [])
    answer = answer_in(row, field_of(item, "text", f"{name}.text"), f"{name}.text", prompt)
    return Response.of(answer.turns, source, meta), answer


def _context(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A demonstration's prompt. Its assistant turns are learnt where ``records.to_dict`` has
    written so.
    """
    return [
        {**turn, "learn": turn.get("learn", False)} if turn["role"] == "assistant" else turn
        for turn in prompt
    ]
