"""Answers of models to the same prompts, read from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefloop.base.console import counted, say
from prefloop.data.check import BadRow, Checked, check_strings
from prefloop.data.files import read_rows
from prefloop.data.layouts import Layout
from prefloop.data.layouts.rated import ScoredAnswer
from prefloop.data.raw import RawRow
from prefloop.data.reading import Records, id_of
from prefloop.data.replies import Reply, reply_of, text_of
from prefloop.data.row import Habits, Row
from prefloop.data.source import PathLike, Source
from prefloop.data.sources import detect_layout, load
from prefloop.errors import DataError
from prefloop.records import (
    Conversation,
    Demonstration,
    Prompt,
    Rating,
    Record,
    Response,
    answer_turns,
    prompt_key,
)

Answers = dict[str, tuple[Prompt, list[Reply]]]
"""By prompt id: the prompt and a model's responses to it."""


def read_answers(
    source: Source | PathLike,
    *,
    layout: str = "auto",
    bad_rows: str = "error",
    quarantine_dir: PathLike | None = None,
    questions: Callable[[], Sequence[Prompt]] | None = None,
) -> Answers:
    """Prompt and responses by id, in the order of a source whose rows hold one response each, in
    any layout that ``load_demonstrations`` reads.

    Read like every other source, except that a response may be blank and an id names a prompt, so
    that it may have several rows. A missing id is made from the prompt, so that it is the same in
    every file. ``meta`` is the prompt's (a reference answer stands in ``meta["reference"]``); other
    fields on the answer are left out. MT-bench's answers name their questions by number, which are
    looked up in ``questions``. Raises ``DataError`` naming file, row and field.
    """
    if questions and layout == "auto" and detect_layout(source) == "mt_bench_answers":
        return _of_mt_bench(Source.of(source), questions())
    checked: Checked[Demonstration] = load(
        Demonstration, source, layout, bad_rows, quarantine_dir, None, reader=_AnswerRows
    )
    if checked.findings:
        say(checked.describe())
    rows: Answers = {}
    for record in checked.records:
        rows.setdefault(record.id, (Prompt(record.id, record.prompt, record.meta), []))[1].append(
            reply_of(Response.of(answer_turns(record)))
        )
    return rows


def _of_mt_bench(source: Source, questions: Sequence[Prompt]) -> Answers:
    """MT-bench's answers to the first turns of its questions; the second turns' prompts differ from
    model to model. Raises ``DataError``.
    """
    by_number = {
        str(prompt.meta["question_id"]): prompt
        for prompt in questions
        if "question_id" in prompt.meta
    }
    answers: Answers = {}
    later = 0
    for raw in read_rows(source):
        where = f"{source}, row {raw.number}"
        row = raw.value if raw.problem is None else {}
        prompt = by_number.get(str(row.get("question_id")))
        if prompt is None:
            raise DataError(
                f"{where}: {raw.problem or 'its question_id is among no questions of --prompts'}"
            )
        choices = row.get("choices")
        turns = (
            [c.get("turns") if isinstance(c, dict) else None for c in choices]
            if isinstance(choices, list)
            else []
        )
        if not turns or not all(isinstance(t, list) and t and isinstance(t[0], str) for t in turns):
            raise DataError(f"{where}, field 'choices': is no list of {{'turns': [texts]}}")
        answers.setdefault(prompt.id, (prompt, []))[1].extend(t[0] for t in turns if t)
        later += any(len(t or []) > 1 for t in turns)
    if later:
        say(
            f"  {source.name}: second turns of {counted(later, 'answer')} are not used: they answer"
            " another conversation in every file"
        )
    return answers


class _AnswerRows(Records):
    """Rows as answers: an id may come again with the same prompt, a response may be blank."""

    def __init__(self, path: Source, layout: Layout, kind: type, habits: Habits) -> None:
        super().__init__(path, layout, kind, habits)
        self._prompt_of: dict[str, tuple[Conversation, int]] = {}

    def read_row(self, raw: RawRow) -> tuple[list[Record | ScoredAnswer], Row]:
        if raw.problem is not None:
            raise BadRow("", raw.problem)
        given = raw.value.get("id")
        answer, row = self._answer(raw.value, "" if given is None else id_of(given))
        if given is None:
            answer = replace(answer, id=f"prompt-{prompt_key(answer.prompt)[:8]}")
        meta = raw.value.get("meta")
        check_strings([turn.to_dict() for turn in answer.prompt], "prompt")
        # A model may write NUL, and is judged by it.
        check_strings(answer.response.replace("\x00", ""), "response")
        known, first = self._prompt_of.setdefault(answer.id, (answer.prompt, raw.number))
        if prompt_key(known) != prompt_key(answer.prompt):
            raise BadRow(
                "id",
                f"'{answer.id[:80]}' stands for another prompt in row {first}; ids must be unique"
                " to a prompt",
            )
        return [replace(answer, meta=meta if isinstance(meta, dict) else {})], row

    def _answer(self, value: dict[str, Any], id: str) -> tuple[Demonstration, Row]:
        try:
            return self._read(value, id)
        except BadRow as bad:
            blank, filled = _filled(value, bad.field.split("."))
            if blank is None:
                raise
            answer, row = self._read(filled, id)
            if answer.response != _STAND_IN:
                raise bad from None  # another field is blank
            return replace(answer, response=blank), row

    def _read(self, value: dict[str, Any], id: str) -> tuple[Demonstration, Row]:
        row = Row(value, id or _STAND_IN, self._words_of, self.habits)
        record = self.layout.read(row) if self.layout.read else None
        if isinstance(record, Rating):
            return Demonstration.of(record.id, record.prompt, answer_turns(record.response)), row
        if isinstance(record, Demonstration):
            return record, row
        raise BadRow(
            "", f"holds a {type(record).__name__.lower()}, expected a prompt with one response"
        )


_STAND_IN = "-"
"""Replaces a blank response while a layout reads its row."""


def _filled(value: Any, path: list[str]) -> tuple[str | None, Any]:
    """The blank text at a path of keys, and the value with the stand-in in its place. Without a
    blank text there, ``None`` and the value as it is.
    """
    if not path:
        return (value, _STAND_IN) if isinstance(value, str) and not value.strip() else (None, value)
    key, *rest = path
    if isinstance(value, dict) and key in value:
        blank, inner = _filled(value[key], rest)
        return blank, {**value, key: inner}
    if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
        index = int(key)
        blank, inner = _filled(value[index], rest)
        return blank, [*value[:index], inner, *value[index + 1 :]]
    return None, value


def restricted(sides: Mapping[str, Answers], prompts: Iterable[Prompt]) -> dict[str, Answers]:
    """Each side's answers to ``prompts``, which are matched by content and not by id. Raises
    ``DataError`` when a side answers none.
    """
    wanted = {prompt_key(prompt.prompt) for prompt in prompts}
    kept = {
        name: {i: of for i, of in side.items() if prompt_key(of[0].prompt) in wanted}
        for name, side in sides.items()
    }
    for name, side in kept.items():
        if not side:
            raise DataError(
                f"{name} answers none of the {len(wanted)} prompts of --prompts: name the file of"
                " prompts that it answers, or leave --prompts out"
            )
    return kept


def empty_answers(sides: Mapping[str, Answers]) -> dict[str, int]:
    """How many responses of each side are empty or blank; sides without one are left out."""
    counts = {
        name: sum(not text_of(r).strip() for _, replies in side.values() for r in replies)
        for name, side in sides.items()
    }
    return {name: count for name, count in counts.items() if count}


def prompts_of(sides: Mapping[str, Answers]) -> list[Prompt]:
    """Every prompt once, from the side with most ``meta``: not every file of answers has to repeat
    the reference answer.
    """
    first = next(iter(sides.values()))
    return [
        max((side[i][0] for side in sides.values()), key=lambda prompt: len(prompt.meta))
        for i in first
    ]


def require_same_prompts(sides: Mapping[str, Answers]) -> None:
    """Raise ``DataError`` naming the first prompt that not all sides answer, or that is worded
    differently.
    """
    (a_path, side_a), *others = sides.items()
    for b_path, side_b in others:
        _require_same(side_a, side_b, a_path, b_path)


def _require_same(side_a: Answers, side_b: Answers, a_path: str, b_path: str) -> None:
    for one, other, has, lacks in (
        (side_a, side_b, a_path, b_path),
        (side_b, side_a, b_path, a_path),
    ):
        missing = [prompt_id for prompt_id in one if prompt_id not in other]
        if missing:
            raise DataError(
                f"prompt '{missing[0]}' is in {has} but not in {lacks} ({len(missing)} such"
                " prompts); both files must answer the same prompts"
            )
    for prompt_id, (prompt, _) in side_a.items():
        if prompt_key(prompt.prompt) != prompt_key(side_b[prompt_id][0].prompt):
            raise DataError(
                f"prompt '{prompt_id}' is worded differently in {a_path} and {b_path}; "
                "both files must answer the same prompts"
            )
