"""The meaning of a dataset that was made elsewhere, by ``--questions`` or by a guess that is
logged.

``--questions`` takes several ``KEY=NAMES``: ``prompt=FIELD`` (or several fields, joined by a line
break), ``system=FIELD``, ``responses=FIELD,FIELD`` in the order to which votes refer;
``preferred=QUESTION`` (a ranking, a label, or a rating of the pair whose low values are for the
first response), ``ratings=QUESTION,QUESTION`` (one for each response), ``thumb=QUESTION`` (a label
or a rating of one response); ``strength=QUESTION``, ``why=QUESTION``. Values that do not explain
themselves follow a colon: ``preferred=QUESTION:VALUE,VALUE,VALUE`` in the order of the responses,
where further values are ties; ``thumb=QUESTION:UP,DOWN``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefloop.data.argilla_guess import (
    HOW,
    Unclear,
    as_thumb,
    as_vote,
    guess_fields,
    with_questions,
)
from prefloop.data.argilla_votes import ArgillaQuestion, ArgillaReading
from prefloop.errors import ConfigError, DataError, among
from prefloop.labeling.argilla.datasets import Dataset

KEYS = ("prompt", "system", "responses", "preferred", "ratings", "thumb", "strength", "why")


def reading_of(dataset: Dataset, given: Sequence[str], votes: bool = True) -> ArgillaReading | None:
    """How a dataset is read; ``None`` for one of prefloop's own. ``votes``: the dataset must have
    votes to read.

    Raises ``ConfigError`` for a wrong ``given``, ``DataError`` where the names leave a doubt.
    """
    if dataset.kind is not None:
        if given:
            raise ConfigError(
                f"dataset '{dataset.name}' was made by `prefloop label push` and tells what its"
                " questions mean: leave --questions out"
            )
        return None
    named = _parse(given)
    other = [
        f"'{name}' ({type})"
        for name, type in dataset.fields.items()
        if type not in ("text", "chat")
    ]
    if other and "prompt" not in named:
        raise DataError(
            f"dataset '{dataset.name}': prefloop reads text and chats, and annotators saw"
            f" {', '.join(other)} too. Say --questions prompt=FIELD where the text alone makes"
            " sense"
        )
    try:
        reading = _reading(dataset, named)
    except Unclear as unclear:
        raise DataError(f"dataset '{dataset.name}': {unclear}") from None
    if votes and not reading.responses:
        raise DataError(
            f"dataset '{dataset.name}': none of the fields {', '.join(map(repr, dataset.fields))}"
            f" is a response by its name. {HOW}"
        )
    return reading


def _parse(given: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Key → names, and the values after the colon."""
    parsed: dict[str, tuple[list[str], list[str]]] = {}
    for one in given:
        key, equals, rest = one.partition("=")
        names, _, values = rest.partition(":")
        if not equals or not names.strip(","):
            raise ConfigError(f"--questions '{one}': expected KEY=NAME, such as preferred=better")
        if key not in KEYS:
            raise ConfigError(f"--questions '{one}': '{key}' is unknown; {among(key, KEYS)}")
        if key in parsed:
            raise ConfigError(f"--questions: '{key}' is given twice")
        if values and key not in ("preferred", "thumb"):
            raise ConfigError(
                f"--questions '{one}': values after a colon are for preferred and thumb"
            )
        parsed[key] = names.split(","), values.split(",") if values else []
    return parsed


def _reading(dataset: Dataset, named: dict[str, tuple[list[str], list[str]]]) -> ArgillaReading:
    texts = [name for name, type in dataset.fields.items() if type in ("text", "chat")]
    fields = {
        key: _known(named[key][0], texts, "field")
        for key in ("prompt", "system", "responses")
        if key in named
    }
    reading = guess_fields(texts, fields.get("prompt"), fields.get("responses"))
    if "system" in fields:
        reading = replace(reading, system=_single("system", fields["system"]))
    by_name = {question.name: question for question in dataset.questions}
    asked = {
        key: [by_name[name] for name in _known(named[key][0], list(by_name), "question")]
        for key in named
        if key not in fields
    }
    main = [key for key in ("preferred", "ratings", "thumb") if key in asked]
    if len(main) > 1:
        raise ConfigError(
            f"--questions: {' and '.join(main)} are given, but one of them says what is better"
        )
    if not main:
        extra = {question.name for key in asked for question in asked[key]}
        reading = with_questions(reading, [q for q in dataset.questions if q.name not in extra])
    elif main == ["ratings"]:
        reading = replace(reading, rated=_ratings(asked["ratings"], reading.responses))
    elif main == ["thumb"]:
        question = _single("thumb", asked["thumb"])
        reading = replace(reading, thumb=_thumb(question, named["thumb"][1], reading.responses))
    else:
        question = _single("preferred", asked["preferred"])
        reading = replace(
            reading, preferred=_preferred(question, named["preferred"][1], reading.responses)
        )
    if "strength" in asked:
        reading = replace(reading, strength=_graded(_single("strength", asked["strength"])))
    if "why" in asked:
        reading = replace(reading, why=_single("why", asked["why"]))
    if main:
        used = {question.name for each in asked.values() for question in each}
        reading = replace(
            reading, unused=tuple(q.describe() for q in dataset.questions if q.name not in used)
        )
    return reading


def _known(names: list[str], existing: list[str], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in existing:
            raise ConfigError(
                f"--questions: the dataset has no {what} '{name}'; {among(name, existing)}"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"--questions: {', '.join(names)} names a {what} twice")
    return tuple(names)


def _single(key: str, named: Sequence[Any]) -> Any:
    if len(named) != 1:
        raise ConfigError(f"--questions: {key} takes one name, found {len(named)}")
    return named[0]


def _preferred(
    question: ArgillaQuestion, values: list[str], responses: tuple[str, ...]
) -> ArgillaQuestion:
    if len(responses) < 2:
        raise ConfigError(
            "--questions: preferred compares responses, and there is one: name several, or take"
            " thumb"
        )
    if question.type == "rating" and not values:
        if len(responses) != 2:
            raise ConfigError(
                f"--questions: one rating cannot compare {len(responses)} responses: name a rating"
                " each with ratings"
            )
        return question
    if not values:
        meant = as_vote(question, responses)
        if meant is not None:
            return meant
    if question.type not in ("ranking", "label_selection", "rating") or not values:
        values_of = ",".join(f"VALUE_OF_{name}" for name in responses)
        raise ConfigError(
            f"--questions: the values of {question.describe()} do not name the responses: say "
            f"preferred={question.name}:{values_of}[,VALUE_OF_A_TIE]"
        )
    means: dict[Any, Any] = dict.fromkeys(question.options)
    for place, value in enumerate(_options(question, values)):
        means[value] = place if place < len(responses) else "tie"
    if len(values) < len(responses) or (
        question.type == "ranking" and set(means.values()) != {*range(len(responses))}
    ):
        raise ConfigError(
            f"--questions: preferred needs a value for each of {', '.join(responses)}"
        )
    return replace(
        question,
        type="label_selection" if question.type == "rating" else question.type,
        means=means,
    )


def _options(question: ArgillaQuestion, values: list[str]) -> list[Any]:
    options = {str(option): option for option in question.options}
    for value in values:
        if value not in options:
            raise ConfigError(
                f"--questions: question '{question.name}' has no value '{value}';"
                f" {among(value, list(options))}"
            )
    if len(set(values)) < len(values):
        raise ConfigError(f"--questions: a value of '{question.name}' is named twice")
    return [options[value] for value in values]


def _ratings(
    questions: list[ArgillaQuestion], responses: tuple[str, ...]
) -> tuple[ArgillaQuestion, ...]:
    if len(questions) != len(responses) or len(responses) < 2:
        raise ConfigError(
            f"--questions: {len(questions)} ratings for {len(responses)} responses"
            f" ({', '.join(responses)}): name one for each"
        )
    for question in questions:
        if question.type != "rating":
            raise ConfigError(f"--questions: {question.describe()} is no rating")
    return tuple(questions)


def _thumb(
    question: ArgillaQuestion, values: list[str], responses: tuple[str, ...]
) -> ArgillaQuestion:
    if len(responses) != 1:
        raise ConfigError(
            f"--questions: thumb is about one response, and there are {len(responses)}: take"
            " preferred"
        )
    if values:
        if len(values) != 2 or question.type not in ("label_selection", "rating"):
            raise ConfigError(
                f"--questions: thumb={question.name}:UP,DOWN takes the value that is a thumb up and"
                " the one that is down"
            )
        up, down = _options(question, values)
        return replace(question, means={**dict.fromkeys(question.options), up: "up", down: "down"})
    meant = as_thumb(question)
    if meant is None:
        raise ConfigError(
            f"--questions: the values of {question.describe()} do not say which is good: say"
            f" thumb={question.name}:UP,DOWN"
        )
    return meant


def _graded(question: ArgillaQuestion) -> ArgillaQuestion:
    if question.type not in ("rating", "label_selection"):
        raise ConfigError(
            f"--questions: {question.describe()} is no strength: a rating or a label is"
        )
    return replace(
        question, means={option: place for place, option in enumerate(question.options, 1)}
    )
