"""A seeded generator of damaged rows over all layouts: keys dropped, renamed, doubled into others,
retyped, nested, cut; odd texts.

``mutated`` gives rows; ``mutated_lines`` gives lines of JSON, which can say more: a key twice,
numbers without end, nesting without end. ``benchmarks/reliability/rows.py`` reads tens of thousands
of both.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

from layout_rows import ASK, BAD, GOOD, MORE, PUBLISHED, TOOL

_ASKED = {
    "fields": {"prompt": ASK, "response_1": BAD, "response_2": GOOD},
    "metadata": {"batch": 3},
}
_ANSWER = {"value": "response_2", "user_id": "u1", "status": "submitted"}
_FLAT = {
    "better.responses": ["response_2"],
    "better.responses.users": ["u1"],
    "better.responses.status": ["submitted"],
}
_SUMMARIES = [{"text": f" {BAD}", "policy": "ref"}, {"text": f" {GOOD}", "policy": "sup4"}]
LAYOUT_ROWS: list[tuple[str, list[dict[str, Any]]]] = [
    *PUBLISHED.values(),
    (
        "argilla",
        [{**_ASKED, "responses": {"better": [_ANSWER]}, "status": "completed", "_server_id": "s1"}],
    ),
    (
        "argilla",
        [{"prompt": ASK, "response_1": BAD, "response_2": GOOD, "_server_id": "s1", **_FLAT}],
    ),
    (
        "webgpt",
        [
            {
                "question": {"full_text": ASK},
                "answer_0": BAD,
                "score_0": -0.5,
                "answer_1": GOOD,
                "score_1": 0.5,
            }
        ],
    ),
    (
        "summarize_from_feedback",
        [{"info": {"post": ASK, "title": "Help"}, "summaries": _SUMMARIES, "choice": 1}],
    ),
    (
        "stack_exchange",
        [
            {
                "question": ASK,
                "answers": [{"text": BAD, "pm_score": 1}, {"text": GOOD, "pm_score": 5}],
            }
        ],
    ),
    ("rated_lists", [{"input": ASK, "generations": [GOOD, BAD, MORE], "rating": [5, 3, None]}]),
    (
        "xlam",
        [
            {
                "query": ASK,
                "tools": [TOOL],
                "answers": [{"name": "ring", "arguments": {"number": "B12"}}],
            }
        ],
    ),
]
"""Rows of every layout that can be read, several where it comes in several forms."""
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e308,
    10**40,
    10**400,
    -(2**63),
    2**31,
    "",
    " ",
    "\n\t",
    "0",
    "true",
    "null",
    "[]",
    "{}",
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    [None],
    ["a"],
    [["a"]],
    [["a"], "tie"],
    {"a": ["a"]},
    [1],
    [0, 0],
    [1, 1],
    [True, False],
    "NaN",
    "inf",
    "-1",
    "false",
    "1e999",
    "0.5",
    "9" * 5000,
    "a\x00b",
    "\ud83d",
    "\u202eabc\u2028",
    "🦅" * 3,
    "é\u0301",
    "\x1b]0;x\x07",
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nq",
    "[INST] q [/INST] a </s>",
    "[INST] q",
    "<start_of_turn>user\nq<end_of_turn>",
    "<|user|>",
    "### Human: q### Assistant: a",
    "### Instruction:\nq\n\n### Response:\n",
    "USER: q ASSISTANT: a</s>",
    "\n\nHuman: q\n\nAssistant: a",
    "\n\nHuman:",
    "\n\nAssistant:",
    "a<|im_end|>",
    "</s>",
    "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]",
    '[{"role": "user", "content": "q"}]',
    "[{'role': 'user', 'content': ",
    "[{" * 300,
    {"role": "user", "content": "q"},
    [{"role": "user", "content": "q"}],
    [{"role": "assistant", "content": "a"}],
    [{"from": "gpt", "value": "a"}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    {"role": {"a": 1}, "content": {"b": 2}},
    "model_a",
    "tie",
    "up",
    "<extra_id_1>User\nq",
    "<extra_id_1>",
    "x" * 5000,
    [
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": '{"a": null}'}}],
        }
    ],
    {"shown": [0, 0]},
    {"shown": 1},
    {"finished": "false"},
    {"finished": 0},
    [{"annotator": "p", "choice": True, "strength": "3"}],
    [{"annotator": ["p"], "choice": {"a": 1}}],
    [{"annotator": "p", "choice": 0, "strength": -1}],
    [{"annotator": "p", "choice": 0, "strength": "NaN"}],
    [{"annotator": "p", "choice": 0, "strength": 10**400}],
    [{"annotator": "p", "value": "up", "at": "9999-99-99"}],
    [{"role": "assistant", "content": "a", "weight": -1}],
    [{"role": "assistant", "content": "a", "weight": "0"}],
]
KEYS = [
    *sorted({key for _, rows in LAYOUT_ROWS for row in rows for key in row}),
    "system",
    "history",
    "tools",
    "images",
    "label",
    "margin",
    "messages",
    "role",
    "content",
    "weight",
    "mask",
    "name",
    "meta",
    "id",
    "",
    "\x1b[31m",
    "\ud83d",
    "k" * 10_000,
    "shown",
    "finished",
    "turns",
    "best",
    "votes",
    "source",
    "references",
    "strength",
    "annotator",
    "at",
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def nested(depth: int) -> Any:
    value: Any = "deep"
    for index in range(depth):
        value = [value] if index % 2 else {"d": value}
    return value


def mutate(row: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The row with one to three things wrong."""
    row = copy.deepcopy(row)
    for _ in range(draw.choice((1, 1, 2, 3))):
        spots = list(places(row))
        if not spots:
            row[draw.choice(KEYS)] = copy.deepcopy(draw.choice(ODD))
            continue
        *path, last = draw.choice(spots)
        holder: Any = row
        for step in path:
            holder = holder[step]
        how = draw.choice(
            (
                "drop",
                "rename",
                "null",
                "odd",
                "odd",
                "odd",
                "nest",
                "copy",
                "cut",
                "add",
                "wrap",
                "text",
                "deep",
            )
        )
        if how == "drop":
            del holder[last]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw.choice(KEYS)] = holder.pop(last)
        elif how == "null":
            holder[last] = None
        elif how == "nest":
            holder[last] = {draw.choice(KEYS): holder[last]}
        elif how == "wrap":
            holder[last] = [holder[last]]
        elif how == "copy":
            *other, end = draw.choice(spots)
            value: Any = row
            for step in (*other, end):
                value = value[step]
            holder[last] = copy.deepcopy(value)
        elif how == "cut" and isinstance(holder[last], str | list):
            holder[last] = holder[last][: draw.randrange(len(holder[last]) + 1)]
        elif how == "text":
            holder[last] = json.dumps(holder[last]) if draw.random() < 0.5 else repr(holder[last])
        elif how == "deep":
            holder[last] = nested(draw.choice((3, 99, 100, 101, 300)))
        elif how == "add":
            row[draw.choice(KEYS)] = copy.deepcopy(draw.choice(ODD))
        else:
            holder[last] = copy.deepcopy(draw.choice(ODD))
    return row


def mutated(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Endlessly a layout's name and a damaged row of it, the layouts in turn."""
    draw = random.Random(seed)
    while True:
        for layout, rows in LAYOUT_ROWS:
            yield layout, mutate(draw.choice(rows), draw)


_RAW = re.compile(r'"@raw (\d+)"')


def _deep(depth: int) -> str:
    return '{"d":[' * (depth // 2) + "1" + "]}" * (depth // 2)


RAW: list[tuple[str, int]] = [
    ("1e999", 4),
    ("-1e999", 2),
    ("NaN", 4),
    ("-Infinity", 2),
    ("1" * 5000, 2),
    ('{"a": 1, "a": 2}', 4),
    ('{"role": "user", "content": "one", "content": "two"}', 4),
    *((_deep(depth), 1) for depth in (100, 110, 500, 1000, 5000)),
    ('"\\ud83d\\ude00\\ud83d"', 2),
    ('"\\u0000"', 2),
    ("-0", 1),
    ("1,", 1),
    ('"open', 1),
]
"""Values as a file spells them, with how often they come."""


def mutated_lines(seed: int) -> Iterator[tuple[str, bytes]]:
    """Endlessly a layout's name and one line of JSON: a row of ``mutated``, one in four with a
    value that Python does not write.
    """
    draw = random.Random(seed + 1_000_003)
    spelt, often = zip(*RAW, strict=True)
    for layout, row in mutated(seed):
        if draw.randrange(4) == 0 and (spots := list(places(row))):
            *path, last = draw.choice(spots)
            holder: Any = row
            for step in path:
                holder = holder[step]
            holder[last] = f"@raw {draw.choices(range(len(RAW)), often)[0]}"
        try:
            text = json.dumps(row)
        except RecursionError:
            continue
        text = _RAW.sub(lambda found: spelt[int(found[1])], text)
        if draw.randrange(20) == 0 and row:  # one key of the row a second time
            text = (
                f"{text[:-1]}, {json.dumps(draw.choice(list(row)))}:"
                f" {json.dumps(draw.choice(ODD))}}}"
            )
        yield layout, text.encode()
