"""All that a row asks of the model stands in its prompt: other columns are read where their place
is certain, else the row is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, NEXT, SYSTEM, TOOL, bot, user
from test_cases_kinds import PAIR, load, refused

from prefloop.records import Message

ALPACA = "Below is an instruction that describes a task.\n\n### Instruction:\n{}\n\n### {}:\n{}"


@pytest.mark.parametrize(
    "more",
    [
        {"systemPrompt": SYSTEM},
        {"System": SYSTEM},
        {"system_instruction": SYSTEM},
        {"systemInstruction": {"parts": [{"text": SYSTEM}]}},
        {"system": {"role": "system", "content": SYSTEM}},
        {"system": [{"type": "text", "text": SYSTEM}]},
    ],
)
def test_a_system_text_is_read_under_any_spelling(tmp_path: Path, more: dict[str, Any]) -> None:
    checked = load(tmp_path, PAIR | more)
    assert list(checked.records[0].prompt) == [Message("system", SYSTEM), Message("user", ASK)]
    assert checked.notes == []


@pytest.mark.parametrize("key", ["chat_history", "history", "context"])
def test_messages_before_the_prompt_are_its_history(tmp_path: Path, key: str) -> None:
    before = [user(NEXT), bot(GOOD)]
    wanted = [Message("user", NEXT), Message("assistant", GOOD), Message("user", ASK)]
    assert list(load(tmp_path, PAIR | {key: before}).records[0].prompt) == wanted
    assert list(load(tmp_path, PAIR | {key: [*before, user(ASK)]}).records[0].prompt) == wanted
    assert f"row 2, field '{key}': ends with the user's turn" in refused(
        tmp_path, PAIR, PAIR | {key: [user(NEXT)]}
    )


def test_two_histories_that_differ_refuse_the_row(tmp_path: Path) -> None:
    both = PAIR | {"history": [[NEXT, GOOD]], "chat_history": [[NEXT, BAD]]}
    assert "row 2, field 'chat_history': says something else than 'history'" in refused(
        tmp_path, PAIR, both
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context", "Swifts are birds."),
        ("contexts", ["Swifts are birds.", "They fly."]),
        ("document", "Swifts are birds."),
        ("passage", {"text": "Swifts are birds."}),
        ("persona", "You are a swift."),
        ("choices", ["on the wing", "in trees"]),
        ("options", {"A": "on the wing", "B": "in trees"}),
    ],
)
def test_a_part_of_the_prompt_without_a_place_refuses_the_row(
    tmp_path: Path, key: str, value: Any
) -> None:
    for row in (PAIR, {"question": ASK, "answer": GOOD}, {"messages": [user(ASK), bot(GOOD)]}):
        assert f"row 2, field '{key}': looks like a part of the prompt" in refused(
            tmp_path, row, row | {key: value}
        )


def test_a_part_that_the_prompt_says_itself_is_kept_in_meta(tmp_path: Path) -> None:
    row = {
        "question": f"{ASK}\nA) on the wing\nB) in trees",
        "choices": ["on the wing", "in trees"],
        "answer": GOOD,
    }
    checked = load(tmp_path, row)
    assert checked.records[0].meta == {"choices": row["choices"]}
    assert checked.notes == ["columns kept in meta, not used: choices"]
    half = row | {"choices": ["on the wing", "in"]}
    assert load(tmp_path, half).records
    assert "field 'choices'" in refused(tmp_path, row, row | {"choices": ["on the wing", "in tre"]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("question", "instruction"),
        ("prompt", "instruction"),
        ("instruction", "query"),
        ("prompt", "question"),
    ],
)
def test_two_columns_that_ask_refuse_the_row_unless_one_says_what_the_other_says(
    tmp_path: Path, first: str, second: str
) -> None:
    plain = {first: ASK, "response": GOOD}
    twice = {first: f"Briefly: {ASK}", second: ASK, "response": GOOD}
    checked = load(tmp_path, twice)
    assert (
        checked.records[0].prompt[0].content == f"Briefly: {ASK}" and checked.records[0].meta == {}
    )
    assert checked.notes == [f"columns left out, they repeat the conversation: {second}"]
    assert (
        f"row 2, field '{second}': is a second prompt next to '{first}', and nothing says how"
        in refused(tmp_path, plain, plain | {second: "Answer as a doctor."})
    )


@pytest.mark.parametrize("input", ["<noinput>", "<No input>", ""])
def test_alpacas_word_for_no_input_is_none(tmp_path: Path, input: str) -> None:
    record = load(tmp_path, {"instruction": ASK, "input": input, "output": GOOD}).records[0]
    assert list(record.prompt) == [Message("user", ASK)]


@pytest.mark.parametrize("heading", ["Output", "Response"])
def test_a_prompt_column_with_the_answer_in_it_is_left_out(tmp_path: Path, heading: str) -> None:
    row = {
        "instruction": ASK,
        "input": "in winter",
        "output": GOOD,
        "prompt": ALPACA.format(ASK, heading, GOOD),
    }
    checked = load(tmp_path, row)
    assert list(checked.records[0].prompt) == [Message("user", f"{ASK}\nin winter")]
    assert (checked.records[0].response, checked.records[0].meta) == (GOOD, {})
    assert checked.notes == ["columns left out, they repeat the conversation: prompt"]


def test_a_prompt_that_ends_in_its_answers_word_stays_the_prompt(tmp_path: Path) -> None:
    row = {
        "prompt": "Do swifts land? Answer yes or no",
        "question": "Do swifts land?",
        "response": "no",
    }
    assert load(tmp_path, row).records[0].prompt[0].content == "Do swifts land? Answer yes or no"


def test_a_prompt_that_holds_an_answer_alone_is_refused(tmp_path: Path) -> None:
    row = {"prompt": ALPACA.format(ASK, "Output", GOOD), "output": GOOD}
    assert "field 'prompt': ends with the assistant's turn" in refused(tmp_path, row)


def test_tools_within_a_system_turn_are_the_prompts(tmp_path: Path) -> None:
    for said in (SYSTEM, ""):
        for key in ("tools", "functions"):
            turns = [{"role": "system", "content": said, key: [TOOL]}, user(ASK), bot(GOOD)]
            record = load(tmp_path, {"messages": turns}).records[0]
            assert record.prompt.tools == [TOOL] and len(record.prompt) == 1 + bool(said)
    other = {"type": "function", "function": {"name": "other"}}
    turns = [{"role": "system", "content": SYSTEM, "tools": [TOOL]}, user(ASK), bot(GOOD)]
    plain = {"messages": turns}
    assert "row 2, field 'tools': offers other tools" in refused(
        tmp_path, plain, plain | {"tools": [other]}
    )
    answer = [{"role": "system", "content": SYSTEM, "tools": [other]}, user(ASK), bot(GOOD)]
    pair = PAIR | {"prompt": turns[:2]}
    assert "field 'chosen.0.tools': offers other tools than the prompt" in refused(
        tmp_path, pair, pair | {"chosen": answer}
    )


def test_calls_of_a_turn_are_read_or_refused(tmp_path: Path) -> None:
    def row(calls: Any) -> dict[str, Any]:
        turns = [user(ASK), {"role": "assistant", "content": "", "function_calls": calls}]
        return {"messages": [*turns, {"role": "environment", "content": "1"}, bot(GOOD)]}

    calls = [{"name": "look_up", "arguments": {"word": "swift"}}]
    prompt = load(tmp_path, row(calls)).records[0].prompt
    assert [call.name for call in prompt[1].tool_calls] == ["look_up"] and prompt[2].role == "tool"
    assert "row 2, field 'messages.1.function_calls': holds no tool call as JSON" in refused(
        tmp_path, row(calls), row("look_up(word='swift')")
    )


@pytest.mark.parametrize(
    "plain",
    [
        PAIR,
        {"instruction": ASK, "output": GOOD},
        {"query": ASK, "response": GOOD},
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": ASK, "response_a": GOOD, "response_b": BAD, "winner": "model_a"},
    ],
)
def test_a_conversation_beside_a_row_that_says_something_else_refuses_it(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    for other in ([user(NEXT), bot(GOOD)], [{"input": NEXT, "output": GOOD}], [NEXT, GOOD]):
        assert "row 2, field 'conversation': is another conv" in refused(
            tmp_path, plain, plain | {"conversation": other}
        )


def test_a_prompt_that_is_the_last_question_of_a_conversation_has_the_turns_before_it(
    tmp_path: Path,
) -> None:
    talk = [{"input": NEXT, "output": "Yes."}, {"input": ASK, "output": GOOD}]
    checked = load(tmp_path, PAIR | {"conversation": talk})
    assert [turn.content for turn in checked.records[0].prompt] == [NEXT, "Yes.", ASK]
    assert checked.notes == ["columns left out, they repeat the conversation: conversation"]
