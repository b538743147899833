"""Records say what they carry: on disk and back, in what makes two of them the same, and where a
part contradicts another.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefloop.records import (
    Comparison,
    Conversation,
    Demonstration,
    Message,
    Prompt,
    Rating,
    Response,
    ToolCall,
    Vote,
    answer_turns,
    from_dict,
    prompt_key,
    to_dict,
)

TOOL = {
    "type": "function",
    "function": {"name": "ring", "parameters": {"type": "object", "properties": {}}},
}
ASKED = Conversation([Message("system", "Be brief."), Message("user", "Who rings?")], [TOOL])
CALLED = [
    Message("assistant", "", "I should look.", [ToolCall("ring", {"b": 1, "a": 2}, "c1")]),
    Message("tool", "B12", tool_call_id="c1", name="ring"),
    Message("assistant", "B12 rings.", learn=False),
]


@pytest.mark.parametrize(
    "record",
    [
        Prompt("p", ASKED, {"topic": "t"}),
        Demonstration.of("d", ASKED, CALLED),
        Demonstration.of(
            "d",
            Conversation([*ASKED, *CALLED, Message("user", "And?")]),
            [Message("assistant", "No.")],
        ),
        Comparison(
            "c",
            ASKED,
            [Response.of(CALLED), Response("No.", "sft", {"finished": False})],
            [Vote("ann", 1, 2)],
        ),
        Rating("r", ASKED, Response.of(CALLED)),
    ],
)
def test_a_record_comes_back_from_disk_as_it_was(record: Any) -> None:
    back = from_dict(type(record), json.loads(json.dumps(to_dict(record))))
    assert back == record and back.prompt.tools == record.prompt.tools


def test_plain_records_hold_only_what_they_say() -> None:
    row = to_dict(
        Comparison("c", Conversation([Message("user", "q")]), [Response("a"), Response("b")])
    )
    assert row["prompt"] == [{"role": "user", "content": "q"}] and "tools" not in row
    assert row["responses"][0] == {"text": "a", "source": "", "meta": {}}


def test_what_makes_two_prompts_the_same() -> None:
    def key(turns: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        return prompt_key(Conversation(turns, tools or []))

    asked, said = Message("user", "q"), Message("assistant", "a")
    turned = {"function": dict(reversed(TOOL["function"].items())), "type": "function"}  # type: ignore[attr-defined]
    assert key([asked], [TOOL]) == key([asked], [turned]) != key([asked])
    assert key([asked, said]) == key([asked, Message("assistant", "a", learn=False)])
    assert key([asked, said]) != key([asked, Message("assistant", "a", "thoughts")])
    first, second = (
        ToolCall("ring", arguments) for arguments in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    )
    assert key([Message("assistant", "", tool_calls=[first])]) == key(
        [Message("assistant", "", tool_calls=[second])]
    )
    assert key([Message("tool", "x", name="ring")]) != key([Message("tool", "x", name="call")])
    assert Conversation([asked], [TOOL]) != [asked] and Conversation([asked]) == [asked]


def test_an_answers_text_is_what_its_turns_say() -> None:
    answer = Response.of(CALLED)
    assert (
        "[calls ring(" in answer.text
        and "B12 rings." in answer.text
        and answer_turns(answer) == CALLED
    )
    assert (
        from_dict(Response, {"text": "", "turns": [turn.to_dict() for turn in CALLED]}).text
        == answer.text
    )
    with pytest.raises(ValueError, match="the text is not what its turns say"):
        Response("something else", turns=CALLED)
    assert Response.of([Message("assistant", "a")]) == Response("a")


def test_errors_name_the_field_in_words() -> None:
    for row, said in (
        ({"id": "p"}, "field 'prompt': is missing"),
        ({"id": "p", "prompt": [], "label": 1}, "field 'label': is no key that a record has here"),
        ({"id": "p", "prompt": [], "tools": "x"}, "tools is no list of JSON schemas"),
    ):
        with pytest.raises(ValueError, match=said):
            from_dict(Prompt, row)
