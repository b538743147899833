"""What a row's answers and their prompt give: pairs, thumbs or demonstrations; and the prompt of
answers that contain it.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.data.answers import Answer, answer_of, is_setting
from prefloop.data.check import (
    BadRow,
    check_answer,
    check_distinct,
    check_prompt,
    number_of,
    truth_of,
)
from prefloop.data.judged import verdict
from prefloop.data.prompts import CONVERSATIONS, context, last_answer, prompt_of, same, turns_at
from prefloop.data.row import Row
from prefloop.data.surroundings import around
from prefloop.records import (
    Comparison,
    Conversation,
    Demonstration,
    Message,
    Rating,
    Response,
    Thumb,
    Vote,
)

_COPIES = ("raw_chosen", "raw_rejected")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_rm_score", "rejected_rm_score"),
)
OTHER_ANSWERS = (
    "chosen",
    "rejected",
    "responses",
    "response_a",
    "completions",
    "chosen_response",
    "rejected_response",
    "rejected_messages",
    "response_j",
    "response_k",
)
"""Columns of answers that no row of a demonstration has."""
_VERDICTS = ("winner", "preferred", "preference", "choice", "better", "label")


def whole_prompt(
    prompt: Conversation, answers: Sequence[Answer], keys: Sequence[str]
) -> Conversation:
    """The prompt, or the longer one that precedes every answer that has one."""
    fuller = [
        (key, a.before) for key, a in zip(keys, answers, strict=True) if len(a.before) > len(prompt)
    ]
    for key, before in fuller[1:]:
        if not same(before, fuller[0][1]):
            raise BadRow(key, f"its prompt is not that of '{fuller[0][0]}'")
    if not fuller:
        return prompt
    before = fuller[0][1]
    if prompt[0].role == "system" and before[0].role != "system":
        before = [prompt[0], *before]
    return Conversation(before, prompt.tools)


def paired(row: Row, first: str, second: str, key: str | None = None) -> Comparison:
    """A pair of answers of which ``first`` names the preferred one, with their prompt."""
    prompt = prompt_of(row, key)
    answers = [answer_of(row, name, prompt) for name in (first, second)]
    prompt = whole_prompt(prompt, answers, (first, second))
    return comparison(row, prompt, answers[0].turns, answers[1].turns, first, second)


def common_start(
    row: Row, wholes: Sequence[list[Message]], keys: Sequence[str]
) -> tuple[Conversation, list[list[Message]]]:
    """Split conversations into the prompt that they share and what follows it in each.

    The prompt ends with a turn of the user or a tool. Where the conversations differ from an
    assistant's turn on, everything from there is the answer.
    """
    for key, whole in zip(keys, wholes, strict=True):
        if whole[-1].role != "assistant":
            raise BadRow(key, f"ends with the {whole[-1].role}'s turn, expected the assistant's")
    first, *others = wholes
    alike = [_alike(first, other) for other in others] or [len(first)]
    shared = min(alike)
    differ, other = shared + 1, keys[min(alike.index(shared) + 1, len(others))]
    while shared and first[shared - 1].role not in ("user", "tool"):
        shared -= 1
    rests = [whole[shared:] for whole in wholes]
    if not shared and all(rest and rest[0].role == "assistant" for rest in rests):
        raise BadRow(keys[0], "has no message before the assistant's: there is no prompt")
    if not shared or not all(rest and rest[0].role == "assistant" for rest in rests):
        raise BadRow(
            other, f"its prompt is not that of '{keys[0]}' (they differ from turn {differ})"
        )
    for key, rest in zip(keys, rests, strict=True):
        check_answer(rest, key)
    prompt = around(row, first[:shared])
    check_prompt(prompt, keys[0])
    return prompt, rests


def _alike(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many turns two conversations have in common at their start."""
    turns = enumerate(zip(first, second, strict=False))
    differing = (index for index, (one, other) in turns if not same([one], [other]))
    return next(differing, min(len(first), len(second)))


def comparison(
    row: Row,
    prompt: Conversation,
    chosen: list[Message],
    rejected: list[Message],
    first: str,
    second: str,
) -> Comparison:
    """The comparison of a preferred answer with another one, with the strength that the file's
    scores give. ``first`` and ``second`` name their columns.
    """
    responses = [Response.of(turns, row.source) for turns in (chosen, rejected)]
    check_distinct(responses[0].text, responses[1].text, first, second)
    _check_verdicts(row, second)
    for column in ("reasoning_content", "thinking"):
        if row.left(column) and not is_setting(row, column):
            raise BadRow(
                column,
                f"may belong to either of the two answers: name it '{first}_reasoning' or"
                f" '{second}_reasoning' after the one that it led to",
            )
    row.repeats(*_COPIES)
    leave_copies(row, prompt, (chosen, rejected))
    vote = Vote(row.source, 0, strength_of(row))
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def _check_verdicts(row: Row, rejected: str) -> None:
    """Refuse a pair with a column by which the rejected answer is better, or neither is, or which
    may mean that.
    """
    if truth_of(row.get("tie")) is True:
        raise BadRow("tie", "says that neither answer is better: leave the row out")
    for key in _VERDICTS:
        word = row[key].strip().casefold() if isinstance(row.get(key), str) else None
        if word in ("rejected", "lose", "tie", "neither", rejected):
            raise BadRow(
                key,
                f"is {word!r}, and the columns name the other answer as the preferred one: keep"
                " what is right",
            )
        if key in row and truth_of(row[key]) is False:
            raise BadRow(
                key,
                f"is {row[key]}, which may mean that the pair is the other way round: take the"
                " column out, or rename it",
            )
    strength = number_of(row.get("preference_strength"))
    if strength is not None and strength < 0:
        raise BadRow(
            "preference_strength",
            f"is {strength:g}: by it the rejected answer may be the better one: take it out",
        )


def two_responses(
    row: Row, prompt: Conversation, first: str, second: str
) -> tuple[Conversation, list[Response]]:
    """Two answers of which another column says which is better, and their prompt."""
    answers = [answer_of(row, key, prompt) for key in (first, second)]
    responses = [Response.of(answer.turns, row.source) for answer in answers]
    check_distinct(responses[0].text, responses[1].text, first, second)
    prompt = whole_prompt(prompt, answers, (first, second))
    leave_copies(row, prompt, [answer.turns for answer in answers])
    return prompt, responses


def leave_copies(row: Row, prompt: Conversation, answers: Sequence[list[Message]]) -> None:
    """Leave out columns that repeat the prompt with one of its answers. Raises ``BadRow`` for a
    column with another conversation.
    """
    own = [turn for turn in prompt if turn.role != "system"]
    for key in filter(row.left, CONVERSATIONS):
        value = row[key]
        if value == [] or value == "":
            row.repeats(key)
        else:
            turns = [turn for turn in turns_at(row, key, value) if turn.role != "system"]
            if not any(same(turns, [*own, *answer]) for answer in (*answers, [])):
                raise BadRow(
                    key, "is another conversation than the prompt and its answers: keep one of them"
                )
            row.repeats(key)


def strength_of(row: Row) -> int | float | None:
    """How much better the first answer is by the file's own scores: their difference, on the file's
    scale.

    Raises ``BadRow`` where the scores prefer the other answer. The columns stay in meta as
    evidence.
    """
    for good, bad in _SCORES:
        if good not in row or bad not in row:
            continue
        first, second = number_of(row.get(good)), number_of(row.get(bad))
        if first is None or second is None:
            continue
        if second > first:
            raise BadRow(
                bad,
                f"is {second:g}, higher than {good} ({first:g}): the columns contradict each other",
            )
        return _strength(row, first - second, f"{good} - {bad}", good, bad)
    margin = number_of(row.get("margin"))
    if margin is None:
        return None
    if margin < 0:
        raise BadRow("margin", f"is {margin:g}: by it the rejected answer is the better one")
    return _strength(row, margin, "margin", "margin")


def _strength(row: Row, strength: int | float, formula: str, *keys: str) -> int | float | None:
    row.evidence(*keys)
    if strength == 0:
        row.say(f"{formula} is 0: the vote has no strength")
        return None
    row.say(f"strength of the vote is {formula}, on the file's own scale")
    return strength


def prompt_and_answer(
    row: Row, key: str, prompt_key: str | None = None
) -> tuple[Conversation, list[Message]]:
    """The one answer of a row and the prompt in another column; each is completed by turns that
    only the other column has.
    """
    prompt = prompt_of(row, prompt_key)
    answer = answer_of(row, key, prompt)
    prompt = whole_prompt(prompt, [answer], [key])
    leave_copies(row, prompt, [answer.turns])
    return prompt, answer.turns


def rating(row: Row, prompt: Conversation, turns: list[Message], up: bool) -> Rating:
    """A rating: an answer with the file's thumb."""
    leave_copies(row, prompt, [turns])
    thumb = Thumb(row.source, "up" if up else "down")
    return Rating(row.id, prompt, Response.of(turns, row.source), [thumb], row.meta())


def refuse_other_answers(row: Row) -> None:
    """Refuse a row of one answer that has a column of another: it is a pair."""
    if (other := row.first(*OTHER_ANSWERS)) is not None:
        raise BadRow(
            other,
            "is a second answer, and most rows of the file have no such column: put pairs into a"
            " file of their own, or rename the column where it holds no answer",
        )


def imitated(row: Row, prompt: Conversation, turns: list[Message]) -> Demonstration | Rating:
    """A demonstration, or a rating where a column judges the answer, however few rows of the file
    have one. Raises ``BadRow``.
    """
    refuse_other_answers(row)
    up = verdict(row)
    if up is not None:
        return rating(row, prompt, turns, up)
    return Demonstration.of(row.id, prompt, turns, row.meta())


def demonstration(
    row: Row, key: str, prompt_key: str | None = None, learnt: bool = False
) -> Demonstration | Rating:
    """An answer to imitate and its prompt. Assistant turns of the prompt are context, unless the
    layout says that they are ``learnt``.
    """
    prompt, turns = prompt_and_answer(row, key, prompt_key)
    return imitated(row, prompt if learnt else context(prompt), turns)


def answered(turns: Conversation, key: str) -> tuple[Conversation, list[Message]]:
    """Split a conversation into its prompt and its last answer. Raises ``BadRow`` where it does not
    end with the assistant's turn.
    """
    if turns[-1].role != "assistant":
        raise BadRow(key, f"ends with the {turns[-1].role}'s turn, expected the assistant's")
    before, answer = last_answer(turns)
    prompt = Conversation(before, turns.tools)
    check_prompt(prompt, key)
    return prompt, answer
