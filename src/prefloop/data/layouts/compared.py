"""Published layouts with answers in lists or numbered columns and a number for each: WebGPT, TL;DR,
Stack Exchange, distilabel's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.answers import answer_in
from prefloop.data.check import (
    BadRow,
    check_distinct,
    check_prompt,
    check_text,
    field_of,
    json_type,
    number_of,
    text_of,
)
from prefloop.data.layouts.rated import choice, comparisons, objects, source_of
from prefloop.data.prompts import TEXTS, prompt_column, prompt_of
from prefloop.data.row import Row
from prefloop.data.surroundings import around
from prefloop.data.tools import calls_of, parsed
from prefloop.records import Comparison, Demonstration, Message, Record, Response, Vote

_LISTS = ("generations", "completions", "answers", "responses")
_RATINGS = ("ratings", "rating", "scores")
_MODELS = ("generation_models", "models")


def is_webgpt(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of OpenAI's WebGPT comparisons."""
    return isinstance(row.get("question"), dict) and all(
        f"{name}_{n}" in row for name in ("answer", "score") for n in (0, 1)
    )


def read_webgpt(row: Row) -> Record:
    """Two answers with people's scores. The answer with a score above 0 is the better one."""
    asked = field_of(row.take("question"), "full_text", "question.full_text")
    prompt = around(row, [Message("user", check_text(asked, "question.full_text"))])
    texts = [answer_in(row, row.take(key), key, prompt).turns for key in ("answer_0", "answer_1")]
    responses = [Response.of(turns, row.source) for turns in texts]
    check_distinct(responses[0].text, responses[1].text, "answer_0", "answer_1")
    scores = [_number(row.take(key), key) for key in ("score_0", "score_1")]
    row.say("votes are the higher score of two answers, their strength the difference")
    row.evidence("score_0", "score_1")
    vote = Vote(row.source, choice(*scores), abs(scores[0] - scores[1]) or None)
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def is_summaries(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of OpenAI's summaries with people's choices between two."""
    return (
        isinstance(row.get("info"), dict)
        and isinstance(row.get("summaries"), list)
        and "choice" in row
    )


def read_summaries(row: Row) -> Record:
    """Two summaries of a post or an article. The prompt is written as the data's authors wrote
    it.
    """
    info = row.take("info")
    prompt = around(row, [Message("user", _to_summarize(info))])
    check_prompt(prompt, "info")
    items = objects(row.take("summaries"), "summaries")
    if len(items) != 2:
        raise BadRow("summaries", f"holds {len(items)} summaries, expected two")
    responses = []
    for i, item in enumerate(items):
        text = _summary(row, item, f"summaries.{i}.text")
        responses.append(
            Response(text, source_of(item.get("policy"), f"summaries.{i}.policy", row))
        )
    check_distinct(responses[0].text, responses[1].text, "summaries.0.text", "summaries.1.text")
    row.message_keys |= dict.fromkeys(
        f"summaries.{key}" for item in items for key in item if key not in ("text", "policy")
    )
    better = number_of(row.take("choice"))
    if better not in (0, 1):
        raise BadRow("choice", f"is {str(row['choice'])[:40]!r}, expected 0 or 1")
    worker = row.get("worker")
    if isinstance(worker, str) and worker.strip():
        row.use("worker")
    else:
        worker = row.source
    row.say(
        "prompts written as the data's authors did: SUBREDDIT, TITLE, POST or Article, then TL;DR:"
    )
    row.evidence("info")
    vote = Vote(worker, 0 if better == 0 else 1)
    return Comparison(row.id, prompt, responses, [vote], row.meta())


def _summary(row: Row, item: Mapping[str, Any], name: str) -> str:
    return check_text(row.without_end(text_of(item, "text", name)), name).strip()


def _to_summarize(info: Any) -> str:
    if not isinstance(info, dict):
        raise BadRow("info", f"is {json_type(info)}, expected an object with post or article")
    if info.get("post") is not None:
        heads = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"))
        parts = [
            head + check_text(info[key], f"info.{key}").strip()
            for head, key in heads
            if info.get(key) not in (None, "")
        ]
        return "\n".join([*parts, "TL;DR:"])
    article = check_text(field_of(info, "article", "info.article"), "info.article")
    return f"Article:\n\n{article.strip()}\n\nTL;DR:"


def is_stack_exchange(row: Mapping[str, Any]) -> bool:
    """Whether a row is a question of Stack Exchange with several answers and the score of each."""
    listed = row.get("answers")
    return (
        any(key in row for key in TEXTS)
        and isinstance(listed, list)
        and bool(listed)
        and all(isinstance(item, dict) and "pm_score" in item for item in listed)
    )


def read_stack_exchange(row: Row) -> list[Record]:
    """Every two answers as a comparison; the higher score is better. Scores grow with the logarithm
    of the votes, so they give no strength.
    """
    prompt = prompt_of(row)
    answers = []
    for index, item in enumerate(objects(row.take("answers"), "answers")):
        name = f"answers.{index}"
        text = check_text(field_of(item, "text", f"{name}.text"), f"{name}.text")
        score = field_of(item, "pm_score", f"{name}.pm_score")
        answers.append((Response(text, row.source), _number(score, f"{name}.pm_score")))
        row.message_keys |= dict.fromkeys(
            f"answers.{key}" for key in item if key not in ("text", "pm_score")
        )
    row.say("votes are the higher pm_score of two answers")
    return comparisons(row, prompt, answers, strong=False)


def _lists(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of several answers as texts and of a number for each; ``None`` where there are
    none.
    """
    for key in _LISTS:
        texts = row.get(key)
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            continue
        for ratings in _RATINGS:
            # Next to `responses`, `scores` tell which ones are best, which is another layout.
            if isinstance(row.get(ratings), list) and (key, ratings) != ("responses", "scores"):
                return key, ratings
    return None


def is_listed(row: Mapping[str, Any]) -> bool:
    """Whether a row has several answers in one list and a number for each in another, as distilabel
    writes them.
    """
    return prompt_column(row) is not None and "chosen" not in row and _lists(row) is not None


def read_listed(row: Row) -> list[Record]:
    """Every two answers as a comparison; the higher number is better, and the difference is the
    strength. An answer without a number is left out.
    """
    prompt = prompt_of(row)
    key, rated = _lists(row) or (_LISTS[0], _RATINGS[0])
    texts, ratings = row.take(key), row.take(rated)
    if len(texts) != len(ratings):
        raise BadRow(rated, f"holds {len(ratings)} numbers for the {len(texts)} answers of '{key}'")
    named = next((name for name in _MODELS if _are_names(row.get(name), len(texts))), None)
    models = [row.source] * len(texts) if named is None else row.take(named)
    answers: list[tuple[Response, float]] = []
    for index, (text, rating) in enumerate(zip(texts, ratings, strict=True)):
        if rating is None:
            row.say(f"answers without a number in '{rated}' are not compared")
            continue
        turns = answer_in(row, text, f"{key}.{index}", prompt).turns
        answers.append((Response.of(turns, models[index]), _number(rating, f"{rated}.{index}")))
    if len(answers) < 2:
        raise BadRow(rated, "holds fewer than two numbers; a comparison takes two")
    row.say(f"votes are the higher number in '{rated}', their strength the difference")
    return comparisons(row, prompt, answers, strong=True)


def _are_names(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(name, str) and name.strip() for name in value)
    )


def _number(value: Any, name: str) -> float:
    number = number_of(value)
    if number is None:
        raise BadRow(name, f"is {json_type(value)}, expected a number")
    return number


def is_xlam(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of xLAM's: a question, tools, and the calls that answer it."""
    return "query" in row and "tools" in row and "answers" in row and _calls(row["answers"])


def _calls(value: Any) -> bool:
    calls = parsed(value) if isinstance(value, str) else value
    return isinstance(calls, list) and all(
        isinstance(call, dict) and "name" in call for call in calls
    )


def read_xlam(row: Row) -> Record:
    """A demonstration, whose answer is the calls."""
    prompt = prompt_of(row, "query")
    calls: Sequence[Any] = calls_of(row.take("answers"), "answers", row.message_keys)
    if not calls:
        raise BadRow(
            "answers", "holds no call: write what the assistant says instead into 'response'"
        )
    return Demonstration.of(
        row.id, prompt, [Message("assistant", "", None, list(calls))], row.meta()
    )
