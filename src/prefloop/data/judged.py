"""Columns and keys that judge an answer: which names do, which words are a thumb, and what is
refused.

A column whose name says that it judges the answer is a thumb where its value can only be one.
Otherwise it refuses the row, because an answer that somebody may have called bad is never imitated
unasked. Two columns that contradict each other refuse the row too. Names are compared in lower
case, with ``thumbsUp`` and ``thumbs-up`` as ``thumbs_up``, and without a leading ``user_``,
``human_`` or ``annotator_``.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

from prefloop.data.check import BadRow, json_type, number_of, truth_of
from prefloop.data.row import Row

Columns = Mapping[str, Any]

_QUESTIONS = frozenset(
    {
        "desirable",
        "liked",
        "upvoted",
        "approved",
        "accepted",
        "preferred",
        "is_accepted",
        "is_approved",
        "is_chosen",
        "is_correct",
        "is_desirable",
        "is_good",
        "is_helpful",
        "is_liked",
        "is_preferred",
        "thumbs_up",
        "thumb_up",
    }
)
"""Names that ask a question, which yes and no answer as well."""
_AGAINST = frozenset(
    {
        "thumbs_down",
        "thumb_down",
        "disliked",
        "downvoted",
        "undesirable",
        "is_bad",
        "is_disliked",
        "is_rejected",
    }
)
"""Names whose yes is a thumb down."""
THUMBS = (
    "label",
    "thumb",
    "thumbs",
    "kto_tag",
    "kto_label",
    "vote",
    *sorted(_QUESTIONS),
    *sorted(_AGAINST),
)
"""Names of thumbs: 1 is up, 0 and -1 are down."""
SCALES = (
    "rating",
    "feedback",
    "quality",
    "grade",
    "annotation",
    "judgment",
    "judgement",
    "verdict",
    "evaluation",
    "votes",
)
"""Names that are often grades on some scale, where 1 may be the worst of five stars. Only words and
true or false are thumbs under them.
"""
_MEASURES = frozenset({"score", "reward"})
"""Names of measurements. They judge only where the file's numbers are 0, 1 and -1."""
_ASPECTS = frozenset({"is_safe", "is_harmful", "is_harmless", "is_toxic"})
"""Names that judge one aspect of an answer, which is no verdict on the whole."""
_JUDGES = frozenset({*THUMBS, *SCALES, *_MEASURES, *_ASPECTS})

_UP = (
    "up",
    "thumbsup",
    "thumbup",
    "like",
    "liked",
    "upvote",
    "upvoted",
    "good",
    "desirable",
    "chosen",
    "accept",
    "accepted",
    "approve",
    "approved",
    "👍",
)
_DOWN = (
    "down",
    "thumbsdown",
    "thumbdown",
    "dislike",
    "disliked",
    "downvote",
    "downvoted",
    "bad",
    "undesirable",
    "rejected",
    "reject",
    "👎",
)
_WORDS = dict.fromkeys(_UP, True) | dict.fromkeys(_DOWN, False)
_YES = {"yes": True, "no": False}
_MOODS = {"positive": True, "negative": False}
"""Words that are thumbs in feedback. As a label they may be the mood of a text."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BESIDE_WORDS = re.compile("[\\s_.!-]|[\ufe0f\U0001f3fb-\U0001f3ff]")
"""What may occur in and around a word, and the skin tones of an emoji."""
_PRODIGY = {"accept": True, "reject": False, "ignore": None}

THRESHOLD = (
    "which numbers are a thumb up, the file does not say: put true or false into a column 'label'"
    " (say, true from 4 stars on); to imitate every answer, however it was graded, rename the"
    " column or name the layout"
)
_WAY_OUT = (
    "put true (good) or false (bad) into a column 'label', or rename the column where it is no"
    " judgment"
)


@functools.lru_cache(maxsize=4096)
def _plain(column: str) -> str:
    name = re.sub(r"[\s-]+", "_", _CAMEL.sub("_", column.strip()).casefold())
    return re.sub("^(user|human|annotator)_", "", name)


def _is_list_of_votes(row: Columns, column: str) -> bool:
    return column == "votes" and isinstance(row[column], list)


def _columns(row: Columns) -> dict[str, str]:
    """The columns that judge, by their plain names. ``answer`` does where another column holds the
    answer and it says accept or reject.
    """
    columns = {}
    for column in row:
        name = _plain(column)
        if name in _JUDGES:
            if not _is_list_of_votes(row, column) and row[column] not in ("", [], {}):
                columns[column] = name
        elif column == "answer" and _says_prodigy(row):
            columns[column] = column
    return columns


def _says_prodigy(row: Columns) -> bool:
    word = row["answer"]
    return (
        isinstance(word, str)
        and word in _PRODIGY
        and any(key in row for key in ("response", "completion", "output"))
    )


def _thumb(name: str, value: Any) -> bool | None:
    """The thumb that a value must be under this name; ``None`` where it may be something else."""
    number = number_of(value)
    if name == "answer":
        return _PRODIGY[value]
    if name in _ASPECTS or (number is not None and name not in THUMBS):
        return None
    up = False if number == -1 and name not in _AGAINST else truth_of(value)
    if up is None and isinstance(value, str):
        words = _WORDS | (_YES if name in _QUESTIONS or name in _AGAINST else {})
        words |= _MOODS if name in SCALES else {}
        up = words.get(_BESIDE_WORDS.sub("", value.strip()).casefold())
        if name in _AGAINST and up is not None and value.strip().casefold() not in _YES:
            return None
    return not up if name in _AGAINST and up is not None else up


def thumb_column(row: Columns) -> str | None:
    """The column that says whether an answer is good: one that is named for it, or another that
    holds a thumb.
    """
    columns = _columns(row)
    named = (column for column, name in columns.items() if name in THUMBS or name == "answer")
    thumbs = (column for column, name in columns.items() if _thumb(name, row[column]) is not None)
    return next(itertools.chain(named, thumbs), None)


def scale_column(row: Columns) -> str | None:
    """The column that grades an answer by a number on the file's own scale."""
    scales = (column for column, name in _columns(row).items() if name in SCALES)
    return next((column for column in scales if number_of(row[column]) is not None), None)


def verdict(row: Row, must: bool = False) -> bool | None:
    """Whether the row's columns call its answer good; ``None`` where no column judges it.

    Raises ``BadRow`` where columns contradict each other, and where a column cannot be read, unless
    another one is clear or the user has named the layout and thereby what the row is. ``must`` is
    for layouts of thumbs, which take no row without one.
    """
    thumbs: dict[str, bool] = {}
    doubtful: dict[str, str] = {}
    for column, name in _columns(row).items():
        up = _thumb(name, row[column])
        if up is not None and not (column in row.habits.signed and number_of(row[column]) == 0):
            thumbs[column] = up
        elif name not in _MEASURES or _may_vote(row, column):
            doubtful[column] = name
    for column, name in doubtful.items():
        if name in THUMBS or name == "answer" or (not thumbs and (must or not row.habits.named)):
            raise BadRow(column, _doubt(name, row[column], column in row.habits.signed))
    first = next(iter(thumbs), None)
    if first is None:
        return None
    for column, up in thumbs.items():
        if up != thumbs[first]:
            raise BadRow(
                column,
                f"is a thumb {_direction(up)}, and '{first}' a thumb {_direction(not up)}: keep"
                " one of the two",
            )
    row.use(*thumbs)
    return thumbs[first]


def _direction(up: bool) -> str:
    return "up" if up else "down"


def _may_vote(row: Row, column: str) -> bool:
    return column not in row.habits.measured and number_of(row[column]) in (0, 1, -1)


def measured(row: Columns) -> list[str]:
    """The columns of measurements with numbers that no vote could be."""
    numbers = [
        (column, number_of(row[column]))
        for column, name in _columns(row).items()
        if name in _MEASURES
    ]
    return [column for column, number in numbers if number is not None and number not in (0, 1, -1)]


def signed(row: Columns) -> list[str]:
    """The columns of thumbs in which -1 means down, so that 0 means neither."""
    return [
        column
        for column, name in _columns(row).items()
        if name in THUMBS and number_of(row[column]) == -1
    ]


def _doubt(name: str, value: Any, signed: bool) -> str:
    if name in SCALES and number_of(value) is not None:
        return f"is a number: {THRESHOLD}"
    shown = repr(value[:40]) if isinstance(value, str) else json_type(value)
    if number_of(value) == 0 and signed:
        return f"is 0 where other rows have -1: neither up nor down; {_WAY_OUT}"
    if name in _ASPECTS:
        return f"judges one side of the answer and not whether it is good; {_WAY_OUT}"
    if name in _MEASURES:
        return f"is {value} in a file of nothing but 0 and 1, which may be a vote; {_WAY_OUT}"
    if name == "answer":
        return f"is {shown}, neither accept nor reject: leave the row out"
    if name in SCALES:
        return f"is {shown}, a judgment of the answer that is no plain yes or no; {_WAY_OUT}"
    return (
        f'is {shown}, expected true or false (or 1, up; 0, down) as in {{"prompt": "…", "response":'
        ' "…", "label": true}: rewrite it, or rename the column where it is no vote'
    )


def learnt(item: Mapping[str, Any], name: str) -> dict[str, bool]:
    """Whether an assistant's turn is imitated, by each key that judges it. Raises ``BadRow`` for
    one that cannot be read.
    """
    thumbs: dict[str, bool] = {}
    for key, plain in _columns(
        {k: v for k, v in item.items() if v is not None and k != "answer"}
    ).items():
        up = _thumb(plain, item[key])
        if up is None and (plain not in _MEASURES or number_of(item[key]) in (0, 1, -1)):
            shown = repr(item[key][:40]) if isinstance(item[key], str) else json_type(item[key])
            raise BadRow(
                f"{name}.{key}",
                f"judges the turn and is {shown}, no plain yes or no: write `weight: 1` or `weight:"
                " 0` into the message, or rename the key",
            )
        if up is not None:
            thumbs[key] = up
    return thumbs
