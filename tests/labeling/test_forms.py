"""Argilla's page and back, without a server: tools, thoughts, calls and results are shown, escaped,
and come back as they were.
"""

import json
from typing import Any

import pytest
from turns import WEATHER, asked, call, looked

from prefloop.data.argilla_own import own_record
from prefloop.labeling.argilla import forms
from prefloop.labeling.argilla.forms import LONGEST, digest, to_answers, to_rg, untakeable
from prefloop.records import Comparison, Conversation, Message, Rating, Response, ToolCall

PLAIN = Comparison(
    "c", Conversation([Message("user", "q <b>?")]), [Response("a", "sft"), Response("b")]
)


def sent(record: Comparison | Rating) -> dict[str, Any]:
    """What goes to the server."""
    return json.loads(to_rg(record, "d").api_model().model_dump_json())


def back(record: Comparison | Rating) -> Any:
    """Pulled as JSON brings it, without what a pull adds."""
    item = json.loads(json.dumps(sent(record) | {"responses": []}))
    pulled = own_record(to_answers(item, {}), item["external_id"])
    pulled.meta.pop("shown", None)
    return pulled


def test_the_page_shows_tools_thoughts_calls_and_results_escaped() -> None:
    record = Comparison("c", asked(), [looked(), Response("No <b>.")])
    fields = sent(record)["fields"]
    assert [message["role"] for message in fields["prompt"]] == [
        "tools", "system", "user", "assistant thinks", "assistant calls", "tool get_weather",
    ]  # fmt: skip
    tools, _, _, thought, called, result = (message["content"] for message in fields["prompt"])
    assert "Weather &lt;now&gt; &amp; here" in tools and "I should look." in thought
    assert called == 'get_weather({"city": "Bern"})' and "&lt;sun&gt;" in result
    shown = sorted([fields["response_a"], fields["response_b"]])
    assert (
        shown[0].startswith("&lt;think&gt;\nBetter ask again.")
        and "[calls get_weather(" in shown[0]
    )
    assert shown[1] == "No &lt;b&gt;."


@pytest.mark.parametrize("number", range(8))
def test_a_pulled_record_equals_the_one_that_was_sent(number: int) -> None:
    record = Comparison(
        f"c{number}", asked(), [looked(), Response("No.", "base")], meta={"topic": "t"}
    )
    assert back(record) == record and back(record).prompt.tools == [WEATHER]
    assert back(record).responses[0].turns == looked().turns
    rating = Rating(f"r{number}", asked(), looked())
    assert back(rating) == rating


@pytest.mark.parametrize(
    "turn",
    [
        Message("assistant", ""),
        Message("assistant", "", tool_calls=[call()]),
        Message("assistant", "said", learn=False),
        Message("assistant", "said", name="bob"),
        Message("tool", "", tool_call_id="c9"),
        Message("tool", "x", name="a_tool_with_a_rather_long_name"),
        Message("assistant", "[calls f({})]"),
        Message("assistant", "", "", [ToolCall("f", "no object {")]),
    ],
)
def test_every_kind_of_turn_comes_back_and_none_is_sent_empty(turn: Message) -> None:
    record = Rating(
        "r", Conversation([Message("user", "q"), turn, Message("user", "and?")]), Response("a")
    )
    assert untakeable([record]) == [] and back(record) == record
    for message in sent(record)["fields"]["prompt"]:
        assert 1 <= len(message["role"]) <= 20 and message["content"]


def test_plain_records_are_sent_as_before_and_those_sent_before_are_read() -> None:
    item = sent(PLAIN)
    assert item["fields"]["prompt"] == [{"role": "user", "content": "q &lt;b&gt;?"}]
    assert item["metadata"]["prefloop"].keys() == {"digest", "meta", "swapped", "responses"}
    assert item["metadata"]["prefloop"]["responses"] == [
        {"source": "sft", "meta": {}},
        {"source": "", "meta": {}},
    ]
    assert back(PLAIN) == PLAIN
    assert digest(PLAIN) == "03fc15dcce8cb527"


def test_the_digest_knows_tools_and_turns() -> None:
    pair = Comparison("c", asked(), [looked(), Response("No.")])
    others = [
        Comparison("c", Conversation(asked()), pair.responses),
        Comparison("c", asked(), [Response(looked().text), Response("No.")]),
    ]
    assert len({digest(each) for each in (pair, *others)}) == 3


def test_what_argilla_does_not_take_is_named_by_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * LONGEST}}
    record = Rating("r", Conversation([Message("user", "q")], [tool]), Response("a"))
    ((_, why),) = untakeable([record])
    assert why.startswith("message 1 (tools) of the prompt has 20,0") and why.endswith(
        "Argilla takes 1 to 20,000"
    )
    blank = Rating("r", Conversation([Message("system", ""), Message("user", "q")]), Response("a"))
    assert untakeable([blank]) == [
        (blank, "message 1 of the prompt has 0 characters, Argilla takes 1 to 20,000")
    ]
    monkeypatch.setattr(forms, "MOST_HIDDEN", 500)
    pair = Comparison("c", asked(), [looked(), Response("No.")])
    ((_, why),) = untakeable([pair])
    assert "characters of metadata, 500 at most are sent" in why
    assert (
        untakeable([PLAIN, Comparison("c", PLAIN.prompt, [Response("x" * 5000), Response("y")])])
        == []
    )
