"""Guess what the fields and questions of an Argilla dataset mean, from their names and values,
where these leave no doubt.

A question is the vote only when each of its values names a response or a tie, and its own name does
not ask for the worse one. Not guessed are a single rating of a pair (nobody can tell which end is
which response) and yes/no as a thumb ("is it harmful?"). Two suitable questions are a doubt.
Rankings come before labels, and labels before ratings of each response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefloop.data.argilla_votes import ArgillaQuestion, ArgillaReading

PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "messages",
    "conversation",
    "chat",
    "input",
)
SYSTEMS = ("system", "system_prompt")
SINGLE = ("response", "completion", "answer", "output", "generation", "reply")
PAIRS = (("chosen", "rejected"), ("a", "b"), ("left", "right"), ("first", "second"))
MORE = frozenset({"context", "history", "background", "passage", "document"})
_WORD = "response|completion|answer|output|generation|candidate|reply|option|model|assistant|choice"
_NUMBERED = re.compile(rf"({_WORD})s?[ _.-]*([a-z]|\d{{1,2}})")
_PLACE = re.compile(
    rf"(?:{_WORD})?([a-z]|\d{{1,2}})(?:(?:is)?(?:much|slightly)?(?:better|best)|wins)?"
)
_TIE = re.compile(r"(?:a)?(?:tie|draw|equal|same|both|neither|nopreference|nodifference)[a-z]*")
_PREFERS = re.compile(
    r"prefer|better|best|winner|overall|chosen|choice|ranking|quality|score|^rating$"
)
_AGAINST = re.compile(r"worse|worst|reject|dislike|bad|least|harm|toxic|wrong|unsafe|loser")
_UP = frozenset(
    {
        "good",
        "up",
        "thumbup",
        "thumbsup",
        "like",
        "accept",
        "accepted",
        "approve",
        "approved",
        "chosen",
    }
)
_DOWN = frozenset(
    {
        "bad",
        "down",
        "thumbdown",
        "thumbsdown",
        "dislike",
        "reject",
        "rejected",
        "disapprove",
        "disapproved",
    }
)
HOW = (
    "Name them: `prefloop label pull --questions prompt=FIELD responses=FIELD,FIELD"
    " preferred=QUESTION`, or `thumb=QUESTION` for one response"
)


class Unclear(ValueError):
    """The names leave a doubt. The message says which, and how the user can say what is meant."""


def guess(fields: Sequence[str], questions: Sequence[ArgillaQuestion]) -> ArgillaReading:
    """The reading of a dataset with these fields and questions. Raises ``Unclear``.

    A dataset without fields of responses is read as prompts; one with responses and without
    questions as pairs or responses that nobody has voted on.
    """
    return with_questions(guess_fields(fields), questions)


def guess_fields(
    names: Sequence[str],
    prompt: tuple[str, ...] | None = None,
    responses: tuple[str, ...] | None = None,
) -> ArgillaReading:
    """The reading of the fields only. ``prompt`` and ``responses`` are not guessed where they are
    given. Raises ``Unclear``.
    """
    lower = {name.lower(): name for name in names}
    if responses is None:
        responses = _responses([name for name in names if name not in (prompt or ())], lower)
    if prompt is None:
        prompt = _prompt([lower[name] for name in lower if lower[name] not in responses])
    if not prompt and not responses:
        raise Unclear(
            f"none of the fields {', '.join(map(repr, names)) or '(there are none)'} is a prompt by"
            f" its name. {HOW}"
        )
    taken = {*prompt, *responses}
    system = next(
        (lower[name] for name in SYSTEMS if name in lower and lower[name] not in taken), None
    )
    return ArgillaReading(prompt, responses, system)


def _prompt(names: Sequence[str]) -> tuple[str, ...]:
    prompts = [name for wanted in PROMPTS for name in names if name.lower() == wanted]
    doubtful = [name for name in names if name.lower() in MORE]
    if [name.lower() for name in prompts] == ["instruction", "input"] and not doubtful:
        return tuple(prompts)  # alpaca's way
    if len(prompts) > 1 or (prompts and doubtful):
        names_ = ", ".join(map(repr, [*prompts, *doubtful]))
        raise Unclear(f"which of the fields {names_} are the prompt? {HOW}")
    return tuple(prompts)


def _responses(names: Sequence[str], lower: Mapping[str, str]) -> tuple[str, ...]:
    numbered: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name.lower()):
            numbered.setdefault(match[1], []).append((match[2].zfill(2), name))
    groups = [
        tuple(name for _, name in sorted(group)) for group in numbered.values() if len(group) > 1
    ]
    groups += [
        (lower[one], lower[other]) for one, other in PAIRS if one in lower and other in lower
    ]
    groups = groups or [(lower[name],) for name in SINGLE if name in lower]
    if len(groups) > 1:
        listed = " or ".join(", ".join(map(repr, group)) for group in groups)
        raise Unclear(f"which fields are the responses, {listed}? {HOW}")
    return groups[0] if groups else ()


def with_questions(reading: ArgillaReading, questions: Sequence[ArgillaQuestion]) -> ArgillaReading:
    """The same reading with the meaning of the questions. Raises ``Unclear`` where there are
    responses and no question says which is good.
    """
    count = len(reading.responses)
    if not count or not questions:
        return replace(reading, unused=_unused(questions))
    if count == 1:
        thumbs = [meant for q in questions if (meant := as_thumb(q)) is not None]
        thumbs = [q for q in thumbs if q.type != "rating"] or thumbs
        used: tuple[ArgillaQuestion, ...] = (_one(thumbs, questions),)
        reading = replace(reading, thumb=used[0])
    else:
        asked = [q for q in questions if not _AGAINST.search(q.name.lower())]
        votes = [meant for q in asked if (meant := as_vote(q, reading.responses)) is not None]
        for type in ("ranking", "label_selection"):
            if of_type := [q for q in votes if q.type == type]:
                used = (_one(of_type, questions),)
                reading = replace(reading, preferred=used[0])
                break
        else:
            used = _rated(reading.responses, questions)
            reading = replace(reading, rated=used)
    names = {q.name for q in used}
    return replace(reading, unused=_unused(q for q in questions if q.name not in names))


def _unused(questions: Iterable[ArgillaQuestion]) -> tuple[str, ...]:
    return tuple(q.describe() if q.known else repr(q.name) for q in questions)


def _one(
    candidates: Sequence[ArgillaQuestion], questions: Sequence[ArgillaQuestion]
) -> ArgillaQuestion:
    if len(candidates) > 1:
        by_name = [q for q in candidates if _PREFERS.search(q.name.lower())]
        candidates = by_name if len(by_name) == 1 else candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise Unclear(f"which of the questions {_listed(candidates)} says what is better? {HOW}")
    raise Unclear(
        f"none of the questions {_listed(questions)} says by its values what is better. {HOW}"
    )


def _listed(questions: Iterable[ArgillaQuestion]) -> str:
    return ", ".join(q.describe() for q in questions)


def as_vote(question: ArgillaQuestion, responses: Sequence[str]) -> ArgillaQuestion | None:
    """The question with the meaning of its values, if each names a response or a tie; otherwise
    ``None``.
    """
    # In an exported file a list of values is either a choice of several, or a ranking whose ranks
    # the SDK left out.
    listed = question.type == "multi_label_selection" and not question.known
    if question.type not in ("ranking", "label_selection") and not listed:
        return None
    means = {value: response_of(str(value), responses) for value in question.options}
    places = [place for place in means.values() if place != "tie"]
    if None in places or len(set(places)) != len(places) or not means:
        return None
    if question.type != "label_selection" and (
        len(places) < len(means) or (listed and len(places) < len(responses))
    ):
        return None
    return replace(question, means=means, type="ranking" if listed else question.type)


def response_of(value: str, responses: Sequence[str]) -> Any:
    """The index of the response that a value names, or ``tie``, or ``None``."""
    word = _plain(value)
    names = [_plain(name) for name in responses]
    if word in names:
        return names.index(word)
    if _TIE.fullmatch(word):
        return "tie"
    if word in ("first", "left"):
        return 0
    if word in ("second", "right") and len(responses) == 2:
        return 1
    match = _PLACE.fullmatch(word)
    if not match:
        return None
    ends = [m[2] if (m := _NUMBERED.fullmatch(name.lower())) else None for name in responses]
    if match[1] in ends:
        return ends.index(match[1])
    if match[1].isdigit() and (word == match[1] or "0" in ends):
        return None  # a bare number that no field has may be a score
    place = int(match[1]) - 1 if match[1].isdigit() else ord(match[1]) - ord("a")
    return place if 0 <= place < len(responses) else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def as_thumb(question: ArgillaQuestion) -> ArgillaQuestion | None:
    """The question with the meaning of its values, if they are words for good and bad, or numbers
    of a known scale; otherwise ``None``.
    """
    if _AGAINST.search(question.name.lower()):
        return None
    if question.type == "rating" and question.known and len(question.options) > 1:
        return by_middle(question)
    if question.type != "label_selection":
        return None
    words = {value: _plain(str(value)) for value in question.options}
    means = {
        value: "up" if word in _UP else "down" if word in _DOWN else None
        for value, word in words.items()
    }
    return replace(question, means=means) if means and None not in means.values() else None


def by_middle(question: ArgillaQuestion) -> ArgillaQuestion:
    """A rating as a thumb: above the middle of its scale up, below it down, and the middle itself
    neither.
    """
    middle = (min(question.options) + max(question.options)) / 2
    return replace(
        question,
        means={
            v: None if v == middle else "up" if v > middle else "down" for v in question.options
        },
    )


def _rated(
    responses: Sequence[str], questions: Sequence[ArgillaQuestion]
) -> tuple[ArgillaQuestion, ...]:
    """The ratings that each name a response, such as ``rating_1`` and ``rating_2``. Of several such
    groups, the one whose name says that it asks for quality.
    """
    groups: dict[str, dict[int, ArgillaQuestion]] = {}
    for question in questions:
        for index, name in enumerate(responses):
            aspect = _aspect(question.name, name) if question.type == "rating" else None
            if aspect is not None and not _AGAINST.search(aspect):
                groups.setdefault(aspect, {})[index] = question
                break
    whole = {aspect: group for aspect, group in groups.items() if len(group) == len(responses)}
    telling = [aspect for aspect in whole if _PREFERS.search(aspect)]
    if len(whole) > 1 and len(telling) == 1:
        whole = {telling[0]: whole[telling[0]]}
    if len(whole) > 1:
        raise Unclear(
            f"which of the ratings {', '.join(map(repr, whole))} says what is better? {HOW}"
        )
    if not whole:
        raise Unclear(
            f"none of the questions {_listed(questions)} says by its values what is better. {HOW}"
        )
    (group,) = whole.values()
    return tuple(group[index] for index in range(len(responses)))


def _aspect(question: str, response: str) -> str | None:
    """A question's name without the part that names the response; ``None`` when it names another
    response or none.
    """
    words, named = (re.findall(r"[a-z]+|\d+", name.lower()) for name in (question, response))
    for size in (len(named), 1):
        end = named[-size:]
        for start in range(len(words) - size + 1):
            if words[start : start + size] == end and (
                size == len(named) or start + size == len(words)
            ):
                rest = [*words[:start], *words[start + size :]]
                return " ".join(rest) or "rating"
    return None
