"""Generated conversations, written in every layout that can carry them, come back turn by turn as
they were.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from prefloop.data.chat import ChatFormat
from prefloop.data.sources import load_comparisons, load_demonstrations, load_ratings
from prefloop.records import Conversation, Message, ToolCall, answer_turns

# Words around whatever stands in the middle: a control token there is prose.
ODD = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "</s>",
        "[INST]",
        "\n\nHuman: ",
        "🦅",
        "e\u0301",
        "\u2028",
        "\u202e",
        "{}",
        "'\"",
        "<think>",
        "### Human: ",
    ]
)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(
    lambda text: f"w{text}w"
)
TEXTS = st.builds(lambda first, odd, last: f"{first} {odd} {last}", WORDS, ODD, WORDS) | WORDS
ARGUMENTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.integers(-9, 9) | st.booleans() | TEXTS, max_size=2
)
CALLS = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from(["look", "ring"]),
        ARGUMENTS,
        st.none() | st.text("xyz", min_size=1),
    ),
    min_size=1,
    max_size=2,
)
TOOLS = st.lists(
    st.just(
        {
            "type": "function",
            "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
        }
    ),
    max_size=1,
)


@st.composite
def exchanges(draw: st.DrawFn, plain: bool) -> list[Message]:
    """A question and its answer: plain, with thoughts, or by way of a tool."""
    turns = [Message("user", draw(TEXTS))]
    if not plain and draw(st.booleans()):
        calls = draw(CALLS)
        turns.append(Message("assistant", draw(st.just("") | TEXTS), tool_calls=calls))
        turns += [
            Message("tool", draw(st.just("") | TEXTS), tool_call_id=call.id, name=call.name)
            for call in calls
        ]
    thoughts = None if plain else draw(st.none() | TEXTS)
    return [*turns, Message("assistant", draw(TEXTS), reasoning_content=thoughts)]


@st.composite
def conversations(draw: st.DrawFn, plain: bool = False) -> Conversation:
    system = [Message("system", text) for text in draw(st.lists(TEXTS, max_size=1))]
    turns = [turn for _ in range(draw(st.integers(1, 3))) for turn in draw(exchanges(plain))]
    return Conversation([*system, *turns], [] if plain else draw(TOOLS))


def openai(turns: list[Message]) -> list[dict[str, Any]]:
    rows = []
    for turn in turns:
        row = turn.to_dict()
        for call in row.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if row.get("tool_calls") and not row["content"]:
            row["content"] = None
        rows.append(row)
    return rows


def sharegpt(turns: list[Message]) -> list[dict[str, Any]]:
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    rows = []
    for row in openai(turns):
        rows.append({"from": names[row.pop("role")], "value": row.pop("content"), **row})
    return rows


Layout = Callable[[Conversation], dict[str, Any]]
WHOLE: dict[str, Layout] = {
    "messages": lambda c: {"messages": openai(c), "tools": c.tools},
    "sharegpt": lambda c: {"conversations": sharegpt(c), "tools": json.dumps(c.tools)},
    "prompt_completion": lambda c: {
        "prompt": openai(c[:-1]),
        "completion": openai(c[-1:]),
        "tools": c.tools,
    },
    "prompt_response": lambda c: {
        "prompt": openai(c[:-1]),
        "response": openai(c[-1:]),
        "functions": c.tools,
    },
    "messages written as JSON": lambda c: {"messages": json.dumps(openai(c)), "tools": c.tools},
    "messages written by repr": lambda c: {"messages": repr(openai(c)), "tools": c.tools},
    "system and history beside": lambda c: {
        **({"system": c[0].content} if c[0].role == "system" else {}),
        "history": openai([turn for turn in c[:-1] if turn.role != "system"][: -_last(c)]),
        "prompt": openai([turn for turn in c[:-1] if turn.role != "system"][-_last(c) :]),
        "completion": openai(c[-1:]),
        "tools": c.tools,
    },
}
TEXT_ONLY: dict[str, Layout] = {
    "alpaca": lambda c: {
        **({"system": c[0].content} if c[0].role == "system" else {}),
        "history": [
            [a.content, b.content] for a, b in zip(_talk(c)[:-2:2], _talk(c)[1:-2:2], strict=True)
        ],
        "instruction": c[-2].content,
        "output": c[-1].content,
    },
    "chatml": lambda c: {
        "text": "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in c)
    },
}


def _talk(turns: list[Message]) -> list[Message]:
    return [turn for turn in turns if turn.role != "system"]


def _last(turns: list[Message]) -> int:
    """How many turns from the last question to the end of the prompt."""
    return next(back for back, turn in enumerate(reversed(turns[:-1]), 1) if turn.role == "user")


def said(turns: list[Message]) -> list[Message]:
    return [
        Message(t.role, t.content, t.reasoning_content, t.tool_calls, t.tool_call_id, t.name)
        for t in turns
    ]


def write(path: Path, row: dict[str, Any]) -> Path:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


quickly = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("layout", WHOLE)
@quickly
@given(conversation=conversations())
def test_conversations_come_back_as_they_were_written(
    tmp_path: Path, layout: str, conversation: Conversation
) -> None:
    (record,) = load_demonstrations(
        write(tmp_path / "f.jsonl", WHOLE[layout](conversation))
    ).records
    assert said([*record.prompt, *answer_turns(record)]) == list(conversation)
    assert record.prompt.tools == conversation.tools
    learnt = [turn.learn for turn in record.prompt if turn.role == "assistant"]
    assert set(learnt) <= {
        layout not in ("prompt_completion", "prompt_response", "system and history beside")
    }


@pytest.mark.parametrize("layout", TEXT_ONLY)
@quickly
@given(conversation=conversations(plain=True))
def test_conversations_of_texts_come_back_as_they_were_written(
    tmp_path: Path, layout: str, conversation: Conversation
) -> None:
    if layout == "chatml" and any("<|im_" in turn.content for turn in conversation):
        return  # such a text does not say where a turn ends
    (record,) = load_demonstrations(
        write(tmp_path / "f.jsonl", TEXT_ONLY[layout](conversation))
    ).records
    assert said([*record.prompt, *answer_turns(record)]) == list(conversation)


@quickly
@given(
    conversation=conversations(),
    other=TEXTS,
    how=st.sampled_from(["explicit", "implicit", "openai", "swift", "sharegpt"]),
)
def test_pairs_and_thumbs_carry_turns_and_tools(
    tmp_path: Path, conversation: Conversation, other: str, how: str
) -> None:
    *prompt, good = openai(conversation)
    bad = {"role": "assistant", "content": f"no {other}"}
    rows: dict[str, dict[str, Any]] = {
        "explicit": {"prompt": prompt, "chosen": [good], "rejected": [bad]},
        "implicit": {"chosen": [*prompt, good], "rejected": [*prompt, bad]},
        "openai": {
            "input": {"messages": prompt},
            "preferred_output": [good],
            "non_preferred_output": [bad],
        },
        "swift": {"messages": [*prompt, good], "rejected_response": bad["content"]},
        "sharegpt": {
            "conversations": sharegpt(conversation[:-1]),
            "chosen": sharegpt(conversation[-1:])[0],
            "rejected": bad,
        },
    }
    path = write(tmp_path / "f.jsonl", {**rows[how], "tools": conversation.tools})
    (pair,) = load_comparisons(path).records
    assert said(pair.prompt) == conversation[:-1] and pair.prompt.tools == conversation.tools
    assert [answer_turns(response) for response in pair.responses] == [
        conversation[-1:],
        [Message("assistant", bad["content"])],
    ]
    assert [rating.response for rating in load_ratings(path).records] == pair.responses
    (learnt,) = load_demonstrations(path).records
    assert answer_turns(learnt) == conversation[-1:] and learnt.prompt.tools == conversation.tools


CHAT = ChatFormat.load(tiny_tokenizer("tools"))
"""Its template writes thoughts, text and calls as they are."""


def written(turn: Message) -> str:
    thoughts = f"<think>{turn.reasoning_content}</think>" if turn.reasoning_content else ""
    calls = [json.dumps(call.to_dict()["function"], ensure_ascii=False) for call in turn.tool_calls]
    return f"{thoughts}{turn.content}{''.join(calls)}<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*WHOLE, *TEXT_ONLY])
@quickly
@given(data=st.data())
def test_what_is_learnt_of_a_file_is_what_its_assistant_says(
    tmp_path: Path, layout: str, data: st.DataObject
) -> None:
    """From the file to the token ids: the learnt stretches are the assistant's turns, in order,
    with their ends, and nothing else.
    """
    conversation = data.draw(conversations(plain=layout in TEXT_ONLY))
    if layout == "chatml" and any("<|im_" in turn.content for turn in conversation):
        return
    path = write(tmp_path / "f.jsonl", {**WHOLE, **TEXT_ONLY}[layout](conversation))
    (record,) = load_demonstrations(path).records
    (tokens,) = CHAT.sequences(record.prompt, answer_turns(record))
    runs = itertools.groupby(zip(tokens.ids, tokens.learn, strict=True), key=lambda pair: pair[1])
    texts = [(learnt, CHAT.tokenizer.decode([token for token, _ in run])) for learnt, run in runs]
    said_by = [turn for turn in conversation if turn.role == "assistant"]
    answers = (
        said_by
        if layout not in ("prompt_completion", "prompt_response", "system and history beside")
        else said_by[-1:]
    )
    assert [text for learnt, text in texts if learnt] == [written(turn) for turn in answers]
    # Nothing got lost on the way: the whole is what the template makes of the conversation.
    rows = [turn.to_dict() for turn in conversation]
    whole = CHAT.tokenizer.apply_chat_template(
        rows, tools=conversation.tools or None, tokenize=False
    )
    assert "".join(text for _, text in texts) + "\n" == whole
