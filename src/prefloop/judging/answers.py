"""Answers of models to the same prompts, read from files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefloop.errors import DataError
from prefloop.records import Prompt, Response, from_dict, prompt_key
from prefloop.replies import Reply, reply_of, text_of

Answers = dict[str, tuple[Prompt, list[Reply]]]
"""By prompt id: the prompt and a model's responses to it."""


def read_answers(path: Path) -> Answers:
    """Prompt and responses by id, in the order of a JSONL file with rows ``{"id", "prompt": [{"role", "content"}, ...], "response"}``.

    A prompt may be a text, the user's one turn; a missing id is made from the prompt, so that it is the same in every file. An id may have several rows; ``meta`` is the prompt's (a reference answer stands in ``meta["reference"]``), ``tools`` are what it offers, other fields are ignored.
    A response may be a list of messages, or a text beside which ``turns`` holds the messages that it shows. Raises ``DataError`` naming file, row and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a JSONL file of responses") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    rows: Answers = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        missing = [name for name in ("prompt", "response") if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(
                f'{where}: no field \'{missing[0]}\'; a row is {{"id", "prompt": a text or [messages], "response"}}'
            )
        try:
            prompt, reply = _prompt(row), _reply(row)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
        known, responses = rows.setdefault(prompt.id, (prompt, []))
        if known.prompt != prompt.prompt:
            raise DataError(
                f"{where}: id '{prompt.id}' stands for another prompt in an earlier row; ids must be unique to a prompt"
            )
        responses.append(reply)
    if not rows:
        raise DataError(f"{path}: holds no rows; expected JSONL rows of prompt and response")
    return rows


def _reply(row: dict[str, Any]) -> Reply:
    """Raises ``ValueError`` naming the field."""
    given, turns = row["response"], row.get("turns")
    if isinstance(given, list):
        given, turns = "", given
    if not isinstance(given, str):
        raise ValueError(f"field 'response' must be text or a list of messages, found {given!r:.80}")
    if not turns:
        if turns is None or given:
            return given
        raise ValueError("field 'response' is a list without a message")
    said = from_dict(Response, {"text": given, "turns": turns}).turns
    if said[0].role != "assistant":
        raise ValueError(f"field 'response': its first message is of role '{said[0].role}', expected assistant")
    return reply_of(Response.of(said))


def _prompt(row: dict[str, Any]) -> Prompt:
    """Raises ``ValueError`` naming the field."""
    prompt, given = row["prompt"], row.get("id")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    tools = {"tools": row["tools"]} if row.get("tools") is not None else {}
    what = {"id": "" if given is None else given, "prompt": prompt, "meta": row.get("meta", {}), **tools}
    found = from_dict(Prompt, what)
    return found if given is not None else replace(found, id=f"prompt-{prompt_key(found.prompt)[:8]}")


def restricted(sides: Mapping[str, Answers], prompts: Iterable[Prompt]) -> dict[str, Answers]:
    """Of every side the answers to ``prompts``, told by what they say and not by id. Raises ``DataError`` when a side answers none."""
    wanted = {prompt_key(prompt.prompt) for prompt in prompts}
    found = {
        name: {i: of for i, of in side.items() if prompt_key(of[0].prompt) in wanted} for name, side in sides.items()
    }
    for name, side in found.items():
        if not side:
            raise DataError(
                f"{name} answers none of the {len(wanted)} prompts of --prompts: name the file of prompts that it answers, or leave --prompts out"
            )
    return found


def empty_answers(sides: Mapping[str, Answers]) -> dict[str, int]:
    """How many responses of each side are empty or blank; sides without one are left out."""
    found = {
        name: sum(not text_of(r).strip() for _, replies in side.values() for r in replies)
        for name, side in sides.items()
    }
    return {name: count for name, count in found.items() if count}


def prompts_of(sides: Mapping[str, Answers]) -> list[Prompt]:
    """Every prompt once, from the side that says most of it: a file of answers need not repeat what a reference answer is."""
    first = next(iter(sides.values()))
    return [max((side[i][0] for side in sides.values()), key=lambda prompt: len(prompt.meta)) for i in first]


def require_same_prompts(sides: Mapping[str, Answers]) -> None:
    """Raise ``DataError`` naming the first prompt that not all sides answer, or that is worded differently."""
    (a_path, side_a), *others = sides.items()
    for b_path, side_b in others:
        _require_same(side_a, side_b, a_path, b_path)


def _require_same(side_a: Answers, side_b: Answers, a_path: str, b_path: str) -> None:
    for one, other, has, lacks in ((side_a, side_b, a_path, b_path), (side_b, side_a, b_path, a_path)):
        missing = [prompt_id for prompt_id in one if prompt_id not in other]
        if missing:
            raise DataError(
                f"prompt '{missing[0]}' is in {has} but not in {lacks} ({len(missing)} such prompts); "
                "both files must answer the same prompts"
            )
    for prompt_id, (prompt, _) in side_a.items():
        if prompt.prompt != side_b[prompt_id][0].prompt:
            raise DataError(
                f"prompt '{prompt_id}' is worded differently in {a_path} and {b_path}; "
                "both files must answer the same prompts"
            )
