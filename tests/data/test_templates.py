"""Texts that stand in a chat template's markers: each known template is taken apart, an unknown one
is refused by row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, MORE, NEXT, SYSTEM, bot, user
from test_cases_kinds import PAIR, PLAIN, load, refused

from prefloop.records import Message

TEMPLATES = {
    "Phi-4": (
        "<|im_start|>user<|im_sep|>{q}<|im_end|><|im_start|>assistant<|im_sep|>",
        "{a}<|im_end|>",
    ),
    "ChatML with CRLF": (
        "<|im_start|>user\r\n{q}<|im_end|>\r\n<|im_start|>assistant\r\n",
        "{a}<|im_end|>\r\n",
    ),
    "Llama 4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{q}<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "{a}<|eot|>",
    ),
    "Command R": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{q}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{a}<|END_OF_TURN_TOKEN|>",
    ),
    "Command R7B": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{q}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        "{a}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "GLM-4": ("[gMASK]<sop><|user|>\n{q}<|assistant|>\n", "{a}"),
    "OpenChat": (
        "<s>GPT4 Correct User: {q}<|end_of_turn|>GPT4 Correct Assistant:",
        "{a}<|end_of_turn|>",
    ),
    "OASST": ("<|prompter|>{q}<|endoftext|><|assistant|>", "{a}<|endoftext|>"),
    "Granite": (
        "<|start_of_role|>user<|end_of_role|>{q}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "{a}<|end_of_text|>",
    ),
    "gpt-oss": (
        "<|start|>user<|message|>{q}<|end|><|start|>assistant",
        "<|channel|>final<|message|>{a}<|return|>",
    ),
    "an empty thought": (
        "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "{a}",
    ),
    "User: Assistant:": ("User: {q}\nAssistant:", "{a}"),
    "Human: Assistant:": ("Human: {q}\nAssistant:", "{a}"),
    "### User:": ("### User:\n{q}\n\n### Assistant:\n", "{a}"),
    "<human>: <bot>:": ("<human>: {q}\n<bot>:", "{a}"),
    "hh with CRLF": ("\r\n\r\nHuman: {q}\r\n\r\nAssistant:", "{a}"),
    "hh with the marker": ("\n\nHuman: {q}", "Assistant: {a}"),
    "padded": ("{q}", "{a}</s><pad><pad>"),
    "a BOS": ("<s>{q}", "{a}</s>"),
    "begin of text": ("<|begin_of_text|>{q}", "<|begin_of_text|>{a}<|end_of_text|>"),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pair_in_markers_is_the_plain_pair_and_that_is_said(
    tmp_path: Path, template: str
) -> None:
    asks, answers = TEMPLATES[template]
    row = {
        "prompt": asks.format(q=ASK),
        "chosen": answers.format(a=GOOD),
        "rejected": answers.format(a=BAD),
    }
    checked = load(tmp_path, row)
    record = checked.records[0]
    assert list(record.prompt) == PLAIN and [r.text.strip() for r in record.responses] == [
        GOOD,
        BAD,
    ]
    assert checked.notes


@pytest.mark.parametrize(
    "prompt",
    [
        f"System: {SYSTEM}\n\nHuman: {ASK}\n\nAssistant:",
        f"{SYSTEM}\n\nHuman: {ASK}\n\nAssistant:",
        f"{SYSTEM} USER: {ASK} ASSISTANT:",
        f"{SYSTEM}\n### Instruction:\n{ASK}\n### Response:\n",
        (
            f"GPT4 Correct System: {SYSTEM}<|end_of_turn|>GPT4 Correct User:"
            f" {ASK}<|end_of_turn|>GPT4 Correct Assistant:"
        ),
        f"{SYSTEM}<|end_of_turn|>GPT4 Correct User: {ASK}<|end_of_turn|>GPT4 Correct Assistant:",
        f"<|start|>developer<|message|>{SYSTEM}<|end|><|start|>user<|message|>{ASK}<|end|><|start|>assistant<|channel|>final<|message|>",
        (
            f"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{SYSTEM}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{ASK}"
            "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
    ],
)
def test_what_stands_before_the_first_question_is_the_system_text(
    tmp_path: Path, prompt: str
) -> None:
    record = load(tmp_path, PAIR | {"prompt": prompt}).records[0]
    assert list(record.prompt) == [Message("system", SYSTEM), *PLAIN]


@pytest.mark.parametrize(
    "text",
    [
        "User: {q}\nAssistant: {a}\nUser: {r}\nAssistant: {b}",
        "System: be kind\n\nHuman: {q}\n\nAssistant: {a}\n\nHuman: {r}\n\nAssistant: {b}",
        (
            "<|start|>user<|message|>{q}<|end|><|start|>assistant<|channel|>final<|message|>{a}<|end|><|start|>user<|message|>{r}<|end|>"
            "<|start|>assistant<|channel|>final<|message|>{b}<|return|>"
        ),
        (
            "<|header_start|>user<|header_end|>\n\n{q}<|eot|><|header_start|>assistant<|header_end|>\n\n{a}<|eot|>"
            "<|header_start|>user<|header_end|>\n\n{r}<|eot|><|header_start|>assistant<|header_end|>\n\n{b}<|eot|>"
        ),
    ],
)
def test_a_whole_conversation_in_markers_is_read(tmp_path: Path, text: str) -> None:
    record = load(tmp_path, {"text": text.format(q=ASK, a=GOOD, r=NEXT, b=MORE)}).records[0]
    said = [turn.content for turn in record.prompt if turn.role != "system"]
    assert (*said, record.response) == (ASK, GOOD, NEXT, MORE)


def test_thoughts_in_gpt_oss_markers_are_the_answers(tmp_path: Path) -> None:
    thought = (
        "<|channel|>analysis<|message|>Birds.<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    asks = f"<|start|>user<|message|>{ASK}<|end|><|start|>assistant"
    row = {
        "prompt": asks,
        "chosen": thought + GOOD + "<|return|>",
        "rejected": thought + BAD + "<|return|>",
    }
    for response, text in zip(load(tmp_path, row).records[0].responses, (GOOD, BAD), strict=True):
        assert response.turns == [Message("assistant", text, "Birds.")]
    calls = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    assert "row 2, field 'chosen': holds gpt-oss's markers" in refused(
        tmp_path, row, row | {"chosen": calls}
    )
    assert "row 2, field 'chosen': holds gpt-oss's thoughts" in refused(
        tmp_path, row, row | {"chosen": "<|channel|>analysis<|message|>Birds.<|end|>"}
    )


def test_a_prompt_that_opens_thoughts_gives_them_to_its_answers(tmp_path: Path) -> None:
    asks = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    row = {
        "prompt": asks,
        "chosen": f"Hm.\n</think>\n\n{GOOD}",
        "rejected": f"<think>\nOh.\n</think>\n\n{BAD}",
    }
    checked = load(tmp_path, row)
    assert list(checked.records[0].prompt) == PLAIN
    said = [response.text for response in checked.records[0].responses]
    assert said == [f"<think>\nHm.\n</think>\n\n{GOOD}", f"<think>\nOh.\n</think>\n\n{BAD}"]
    assert "<think> at the end of prompts put before their answers (in 1 row)" in checked.notes
    assert "row 2, field 'chosen': does not close the <think>" in refused(
        tmp_path, row, row | {"chosen": GOOD}
    )


@pytest.mark.parametrize("key", ["prompt", "chosen"])
@pytest.mark.parametrize(
    "marker", ["<|turn|>", "<|user_start|>", "<｜Nutzer｜>", "[gMASK]", "<start_of_image>"]
)
def test_an_unknown_marker_refuses_the_row_and_is_named(
    tmp_path: Path, marker: str, key: str
) -> None:
    said = refused(tmp_path, PAIR, PAIR | {key: f"{marker}{PAIR[key]}"})
    assert f"row 2, field '{key}': begins with {marker}, a chat template's marker" in said


def test_an_end_marker_after_an_answer_in_markers_comes_off_whatever_the_file_does(
    tmp_path: Path,
) -> None:
    asks, answers = TEMPLATES["Llama 4"]
    row = {
        "prompt": asks.format(q=ASK),
        "chosen": answers.format(a=GOOD),
        "rejected": answers.format(a=BAD),
    }
    records = load(tmp_path, *[PAIR] * 9, row).records
    assert [response.text for response in records[-1].responses] == [GOOD, BAD]


@pytest.mark.parametrize(
    "text",
    [
        "User: hi\nAssistant: hello\n\nWhat is wrong in this log?",
        "What does <|turn|> mean?",
        "The prompt is\nUser: {q}\nWhat follows?",
        "<s>not</s> this",
        "[Verse 1]\nSwifts fly",
    ],
)
def test_a_question_about_markers_is_a_question(tmp_path: Path, text: str) -> None:
    record = load(tmp_path, PAIR | {"prompt": text}).records[0]
    assert list(record.prompt) == [Message("user", text)]


def test_a_dialogue_is_an_answer_where_it_does_not_begin_with_the_prompt(tmp_path: Path) -> None:
    for text in (
        "Human: Hi\n\nAssistant: Hello",
        "User: Hi\nAssistant: Hello",
        "Assistant: Hi\nUser: Hello",
    ):
        assert load(tmp_path, {"prompt": ASK, "response": text}).records[0].response == text
    row = {"prompt": f"User: {ASK}\nAssistant:", "response": f"User: {ASK}\nAssistant: {GOOD}"}
    assert load(tmp_path, row).records[0].response == GOOD


def test_an_answer_with_the_assistants_marker_alone_is_refused(tmp_path: Path) -> None:
    row = {"prompt": ASK, "response": GOOD}
    assert "row 2, field 'response': begins with 'Assistant'" in refused(
        tmp_path, row, row | {"response": f"Assistant: {GOOD}"}
    )
    assert "row 2, field 'response': stands between <s> and </s>" in refused(
        tmp_path, row, row | {"response": f"<s> {GOOD} </s>"}
    )


def test_headings_that_ask_come_off_one_message_of_several(tmp_path: Path) -> None:
    def row(words: str) -> dict[str, Any]:
        return {"messages": [user(NEXT), bot(MORE), user(words), bot(GOOD)]}

    asks = (
        f"Below is an instruction that describes a task.\n\n### Instruction:\n{ASK}\n\n###"
        " Response:\n"
    )
    checked = load(tmp_path, row(asks), row(f"<|begin_of_text|>{ASK}"))
    assert [record.prompt[-1].content for record in checked.records] == [ASK, ASK]
    assert "alpaca markers taken off messages (in 1 row)" in checked.notes
    more = f"USER: {NEXT} ASSISTANT: {MORE} USER: {ASK} ASSISTANT:"
    assert (
        "row 2, field 'messages.2.content': begins with USER: ASSISTANT:'s markers and holds more"
        in refused(tmp_path, row(ASK), row(more))
    )


def test_openthoughts_markers_stand_around_thoughts_and_answer(tmp_path: Path) -> None:
    said = f"<|begin_of_thought|>\n\nHm.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{GOOD}\n\n<|end_of_solution|>"  # noqa: E501
    for row in ({"messages": [user(ASK), bot(said)]}, {"prompt": ASK, "response": said}):
        checked = load(tmp_path, row)
        assert checked.records[0].response == f"<think>\nHm.\n</think>\n\n{GOOD}"
        assert "OpenThoughts markers" in checked.notes[0]
