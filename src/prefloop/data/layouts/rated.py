"""Layouts in which people or models gave each answer a number or a rank. Every two answers to a
prompt are a comparison.

The better number gives the vote; equal numbers are a tie, which is a vote too. The strength of
ratings is their difference, on the file's own scale. Ranks give no strength, since the distance
between two ranks says nothing about how much better one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from prefloop.data.answers import answer_in
from prefloop.data.check import BadRow, check_prompt, check_text, field_of, json_type, number_of
from prefloop.data.prompts import TEXTS, prompt_of
from prefloop.data.row import Row
from prefloop.data.surroundings import around
from prefloop.records import Comparison, Conversation, Message, Record, Response, Vote, prompt_key

_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ULTRAFEEDBACK = ("fine-grained_score", "overall_score")
MOST_ANSWERS = 500
"""Most answers to one prompt that are compared with each other. More would make millions of pairs
of one row.
"""
LISTS = ("responses", "answers", "completions", "candidates")
"""Columns of several answers to one prompt."""
_GRADES = ("score", "rating", "reward")
_ANSWERS = ("text", "response", "answer", "completion", "content", "output")
_DEEPEST_TREE = 100
_TREE_KEYS = frozenset({"text", "role", "replies", "rank", "deleted"})


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer with a number. It becomes a comparison with the next answer to its prompt."""

    id: str
    prompt: Conversation
    response: Response
    score: float
    annotator: str
    meta: dict[str, Any]


def choice(first: float, second: float) -> Literal[0, 1, "tie"]:
    """The vote of two numbers; the higher one is better."""
    return "tie" if first == second else 0 if first > second else 1


def is_helpsteer(row: Mapping[str, Any]) -> bool:
    """Whether a row is of HelpSteer or HelpSteer2: one answer with five attributes."""
    return "prompt" in row and "response" in row and all(key in row for key in _HELPSTEER)


def read_helpsteer(row: Row) -> ScoredAnswer:
    """One answer with its helpfulness. The other attributes stay in meta."""
    given = row.text("prompt")
    prompt = around(row, extra_id_turns(given, "prompt", row) or [Message("user", given)])
    check_prompt(prompt, "prompt")
    score = number_of(row.take("helpfulness"))
    if score is None:
        raise BadRow("helpfulness", f"is {json_type(row['helpfulness'])}, expected a number")
    row.say(
        "votes are the higher helpfulness of two answers to one prompt, their strength the"
        " difference"
    )
    response = Response(row.text("response"), row.source, {"helpfulness": row["helpfulness"]})
    return ScoredAnswer(row.id, prompt, response, score, row.source, row.meta())


def joined(items: Iterable[ScoredAnswer]) -> Iterator[Comparison | str]:
    """Comparisons of every two neighboring answers to one prompt, and for each answer that gives
    none the reason.
    """
    group: list[ScoredAnswer] = []
    for item in items:
        if group and prompt_key(item.prompt) != prompt_key(group[0].prompt):
            yield from _every_two(group)
            group = []
        group.append(item)
    yield from _every_two(group)


def _every_two(group: Sequence[ScoredAnswer]) -> Iterator[Comparison | str]:
    if len(group) == 1:
        yield "no other answer to the same prompt next to it"
    if len(group) > MOST_ANSWERS:
        yield from [
            f"one of {len(group):,} answers to one prompt, and every two would be compared: keep"
            f" {MOST_ANSWERS} of them at most"
        ] * len(group)
        return
    for first, second in combinations(group, 2):
        if first.response.text.strip() == second.response.text.strip():
            yield "two answers of the same text"
            continue
        strength = abs(first.score - second.score) or None
        vote = Vote(first.annotator, choice(first.score, second.score), strength)
        id = f"{first.id}+{second.id}"
        yield Comparison(
            id, first.prompt, [first.response, second.response], [vote], second.meta | first.meta
        )


def extra_id_turns(text: str, name: str, row: Row) -> list[Message] | None:
    r"""The turns of a HelpSteer2 prompt, in which later ones begin ``<extra_id_1>Assistant\n``;
    ``None`` where it has only one.
    """
    first, *rest = text.split("<extra_id_1>")
    if not rest:
        return None
    row.say("<extra_id_1> markers in prompts, unwrapped into messages")
    turns = [Message("user", check_text(first.strip(), f"{name}.0"))] if first.strip() else []
    for index, piece in enumerate(rest, start=len(turns)):
        who, _, words = piece.partition("\n")
        if who.strip() not in ("User", "Assistant"):
            raise BadRow(
                name, f"holds <extra_id_1> before {who[:40]!r}, expected User or Assistant"
            )
        if index == len(rest) + len(turns) - 1 and who.strip() == "Assistant" and not words.strip():
            break
        words = check_text(words.strip(), f"{name}.{index}")
        turns.append(Message("user" if who.strip() == "User" else "assistant", words))
    return turns


def is_ultrafeedback(row: Mapping[str, Any]) -> bool:
    """Whether a row is of UltraFeedback as first published: one instruction, several completions
    with their scores.
    """
    listed = row.get("completions")
    return (
        "instruction" in row
        and isinstance(listed, list)
        and bool(listed)
        and isinstance(listed[0], dict)
    )


def read_ultrafeedback(row: Row) -> list[Record]:
    """Every two completions as a comparison, by the mean of the fine-grained ratings, which the
    data's authors prefer, else by the overall score.
    """
    prompt = prompt_of(row, "instruction")
    listed = row.take("completions")
    items = objects(listed, "completions")
    key = next(
        (k for k in _ULTRAFEEDBACK if all(number_of(item.get(k)) is not None for item in items)),
        None,
    )
    if key is None:
        raise BadRow(
            "completions",
            f"have no number under {' or '.join(_ULTRAFEEDBACK)}: nothing says which is better",
        )
    row.say(f"votes are the higher {key} of two completions, their strength the difference")
    row.message_keys |= dict.fromkeys(
        f"completions.{k}" for item in items for k in item if k not in ("model", "response", key)
    )
    answers = []
    for index, item in enumerate(items):
        name = f"completions.{index}"
        text = check_text(field_of(item, "response", f"{name}.response"), f"{name}.response")
        model = source_of(item.get("model"), f"{name}.model", row)
        score = float(number_of(item[key]) or 0)
        answers.append((Response(text, model, {key: item[key]}), score))
    return comparisons(row, prompt, answers, strong=True)


def is_nectar(row: Mapping[str, Any]) -> bool:
    """Whether a row is of Nectar: a prompt and ranked answers."""
    listed = row.get("answers")
    return (
        "prompt" in row
        and isinstance(listed, list)
        and bool(listed)
        and isinstance(listed[0], dict)
        and "rank" in listed[0]
    )


def read_nectar(row: Row) -> list[Record]:
    """Every two answers as a comparison; the smaller rank is better."""
    prompt = prompt_of(row, "prompt")
    answers = []
    for index, item in enumerate(objects(row.take("answers"), "answers")):
        name = f"answers.{index}"
        text = check_text(field_of(item, "answer", f"{name}.answer"), f"{name}.answer")
        rank = number_of(field_of(item, "rank", f"{name}.rank"))
        if rank is None:
            raise BadRow(f"{name}.rank", f"is {json_type(item['rank'])}, expected a number")
        row.message_keys |= dict.fromkeys(
            f"answers.{key}" for key in item if key not in ("answer", "rank", "model")
        )
        model = source_of(item.get("model"), f"{name}.model", row)
        answers.append((Response(text, model, {"rank": item["rank"]}), -rank))
    row.say("votes are the better rank of two answers")
    return comparisons(row, prompt, answers, strong=False)


def is_scored(row: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt and several answers, each an object with a number or a rank."""
    listed = row.get(_list_of(row) or "")
    return (
        any(key in row for key in TEXTS)
        and not any(key in row for key in ("votes", "best"))
        and isinstance(listed, list)
        and len(listed) > 1
        and all(
            isinstance(item, dict) and any(key in item for key in (*_GRADES, "rank"))
            for item in listed
        )
    )


def _list_of(row: Mapping[str, Any]) -> str | None:
    return next((key for key in LISTS if key in row), None)


def read_scored(row: Row) -> list[Record]:
    """Every two answers as a comparison; the higher number or the smaller rank is better."""
    prompt = prompt_of(row)
    name = _list_of(row) or LISTS[0]
    items = objects(row.take(name), name)
    grades = [key for key in (*_GRADES, "rank") if any(key in item for item in items)]
    if len(grades) != 1:
        raise BadRow(
            name, f"are graded by {' and '.join(grades)}: keep the one that says which is better"
        )
    grade = grades[0]
    answers = []
    for index, item in enumerate(items):
        where = f"{name}.{index}"
        number = number_of(field_of(item, grade, f"{where}.{grade}"))
        if number is None:
            raise BadRow(f"{where}.{grade}", f"is {json_type(item[grade])}, expected a number")
        key = next((key for key in _ANSWERS if key in item), _ANSWERS[0])
        answer = answer_in(row, field_of(item, key, f"{where}.{key}"), f"{where}.{key}", prompt)
        row.message_keys |= dict.fromkeys(
            f"{name}.{other}" for other in item if other not in ("model", key, grade)
        )
        response = Response.of(
            answer.turns, source_of(item.get("model"), f"{where}.model", row), {grade: number}
        )
        answers.append((response, -number if grade == "rank" else number))
    better = "better rank" if grade == "rank" else f"higher {grade}"
    row.say(
        f"votes are the {better} of two answers"
        + ("" if grade == "rank" else ", their strength the difference")
    )
    return comparisons(row, prompt, answers, strong=grade != "rank")


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of at least two objects. Raises ``BadRow`` for anything else."""
    if not isinstance(value, list) or not value:
        raise BadRow(
            name,
            f"is {json_type(value) if value != [] else 'an empty list'}, expected a list of"
            " answers",
        )
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise BadRow(f"{name}.{index}", f"is {json_type(item)}, expected an object")
    if len(value) < 2:
        raise BadRow(name, "holds one answer; a comparison takes two")
    return value


def source_of(model: Any, name: str, row: Row) -> str:
    """The model of an answer by its own key, or the file where it has none. Raises ``BadRow`` for a
    value that is no text.
    """
    if model is not None and not isinstance(model, str):
        raise BadRow(name, f"is {json_type(model)}, expected text")
    return model if model and model.strip() else row.source


def comparisons(
    row: Row,
    prompt: Conversation,
    answers: Sequence[tuple[Response, float]],
    strong: bool,
) -> list[Record]:
    """A comparison of every two answers by their numbers. Where ``strong``, the difference is the
    vote's strength. ``place`` comes into the ids.
    """
    pairs: list[Record] = []
    meta = row.meta()
    _check_number(len(answers), "")
    for (i, (first, one)), (j, (second, other)) in combinations(enumerate(answers), 2):
        if first.text.strip() == second.text.strip():
            row.say("two answers of the same text make no comparison")
            continue
        vote = Vote(row.source, choice(one, other), abs(one - other) or None if strong else None)
        pairs.append(Comparison(f"{row.id}/{i}-{j}", prompt, [first, second], [vote], meta))
    return pairs


def _check_number(answers: int, name: str) -> None:
    if answers > MOST_ANSWERS:
        raise BadRow(
            name,
            f"has {answers:,} answers to one prompt, and every two would be compared:"
            f" {MOST_ANSWERS} at most are taken",
        )


def is_oasst_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row is a message tree of OASST."""
    return "message_tree_id" in row and isinstance(row.get("prompt"), dict)


def read_oasst_tree(row: Row) -> list[Record]:
    """Every two ranked answers to one message of a tree as a comparison; the smaller rank is
    better. Deleted messages are ignored.
    """
    root = row.take("prompt")
    row.say(
        "votes are the better rank of two replies to one message; what has no such replies is"
        " context or left out"
    )
    row.evidence("message_tree_id")
    pairs: list[Record] = []
    meta = row.meta()
    for path, prompt, replies in _asked(row, root, "prompt", (), [], 0):
        ranked = [(reply, number_of(reply.get("rank"))) for reply in replies]
        answers = [(i, reply, rank) for i, (reply, rank) in enumerate(ranked) if rank is not None]
        if len(answers) < len(replies):
            row.say("replies without a rank are not compared")
        _check_number(len(answers), path)
        for (i, first, one), (j, second, other) in combinations(answers, 2):
            texts = [
                check_text(each.get("text", ""), f"{path}.replies.{n}.text")
                for n, each in ((i, first), (j, second))
            ]
            if texts[0].strip() == texts[1].strip():
                row.say("two answers of the same text make no comparison")
                continue
            at = ".".join(part for part in path.split(".") if part.isdigit())
            id = f"{row.id}/{at + '/' if at else ''}{i}-{j}"
            responses = [Response(text, row.source) for text in texts]
            vote = Vote(row.source, choice(-one, -other))
            pairs.append(Comparison(id, around(row, prompt), responses, [vote], meta))
    if not pairs:
        row.say("trees without two ranked replies to one message give nothing")
    return pairs


def _asked(
    row: Row,
    node: Any,
    name: str,
    above: tuple[Message, ...],
    messages: list[tuple[str, list[Message], list[dict[str, Any]]]],
    depth: int,
) -> list[tuple[str, list[Message], list[dict[str, Any]]]]:
    """Every message of a prompter with replies: its place, the conversation up to it, and its
    replies.
    """
    if not isinstance(node, dict):
        raise BadRow(name, f"is {json_type(node)}, expected a message with text, role and replies")
    if depth > _DEEPEST_TREE:
        raise BadRow(name, f"is more than {_DEEPEST_TREE} replies deep")
    if node.get("deleted"):
        return messages
    row.message_keys |= dict.fromkeys(key for key in node if key not in _TREE_KEYS)
    text = check_text(field_of(node, "text", f"{name}.text"), f"{name}.text")
    role = node.get("role")
    if role not in ("prompter", "assistant"):
        raise BadRow(f"{name}.role", f"is {str(role)[:40]!r}, expected prompter or assistant")
    turns = (*above, Message("user" if role == "prompter" else "assistant", text))
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise BadRow(f"{name}.replies", f"is {json_type(replies)}, expected a list")
    kept = [reply for reply in replies if not (isinstance(reply, dict) and reply.get("deleted"))]
    for index, reply in enumerate(kept):
        _asked(row, reply, f"{name}.replies.{index}", turns, messages, depth + 1)
    if role == "prompter" and len(kept) > 1:
        messages.append((name, list(turns), kept))
    return messages
