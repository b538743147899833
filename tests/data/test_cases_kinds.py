"""Kinds of files that people have and that were once read for something else: each gives what was
meant, or is named by row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_rows import (
    ASK,
    BAD,
    CALL,
    GOOD,
    LESS,
    MORE,
    NEXT,
    SYSTEM,
    TOOL,
    bot,
    gpt,
    hh,
    human,
    tree,
    user,
)

from prefloop.cli import _main, guarded
from prefloop.data import sources
from prefloop.data.check import Checked
from prefloop.data.sources import (
    kind_of,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
)
from prefloop.errors import DataError
from prefloop.records import Comparison, Message

Rows = list[dict[str, Any]]
PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
PLAIN = [Message("user", ASK)]


def write(folder: Path, *rows: dict[str, Any], name: str = "f.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def load(folder: Path, *rows: dict[str, Any]) -> Checked[Any]:
    path = write(folder, *rows)
    found: Checked[Any] = getattr(sources, f"load_{kind_of(path)}")(path)
    return found


def refused(folder: Path, *rows: dict[str, Any], layout: str = "auto") -> str:
    path = write(folder, *rows)
    with pytest.raises(DataError) as error:
        getattr(sources, f"load_{kind_of(path, layout)}")(path, layout=layout)
    return str(error.value)


def pair_of(folder: Path, *rows: dict[str, Any]) -> Comparison:
    return load(folder, *rows).records[0]


def plain(record: Comparison) -> bool:
    """Whether a record is the plain pair, free of what its file wrote around it."""
    return (
        list(record.prompt) == PLAIN
        and [r.text for r in record.responses] == [GOOD, BAD]
        and record.meta == {}
    )


# ---- the same text twice, or a transcript in the place of a text


def test_transcripts_beside_their_prompt_give_the_text_after_the_last_assistant(
    tmp_path: Path,
) -> None:
    row = {"prompt": hh(ASK) + "\n\nAssistant:", "chosen": hh(ASK, GOOD), "rejected": hh(ASK, BAD)}
    checked = load(tmp_path, row)
    assert plain(checked.records[0]) and checked.notes == [
        "Human/Assistant transcripts read as turns (in 1 row)"
    ]
    longer = {
        "prompt": hh(ASK, GOOD, NEXT) + "\n\nAssistant: ",
        "chosen": hh(ASK, GOOD, NEXT, MORE),
        "rejected": hh(ASK, GOOD, NEXT, LESS),
    }
    assert [turn.content for turn in pair_of(tmp_path, longer).prompt] == [ASK, GOOD, NEXT]
    assert plain(
        pair_of(
            tmp_path,
            {**row, "chosen": f"\n\nAssistant: {GOOD}", "rejected": f" {BAD}"} | {"rejected": BAD},
        )
    )
    other = {**row, "rejected": hh(NEXT, BAD)}
    assert (
        "row 2, field 'rejected': holds turns before the response that are not the prompt's"
        in refused(tmp_path, row, other)
    )


def test_the_prompt_is_taken_off_where_most_responses_begin_with_it_and_that_is_said(
    tmp_path: Path,
) -> None:
    twice = [
        {"prompt": f"{ASK} {n}", "chosen": f"{ASK} {n} {GOOD}", "rejected": f"{ASK} {n}\n{BAD}"}
        for n in range(5)
    ]
    checked = load(tmp_path, *twice, PAIR)
    assert {tuple(r.text for r in record.responses) for record in checked.records} == {(GOOD, BAD)}
    assert checked.notes == ["10 of 12 responses began with their prompt, which was taken off"]
    both = {
        "instruction": "Say when",
        "input": "swifts sleep",
        "output": f"Say when\nswifts sleep {GOOD}",
    }
    assert load(tmp_path, both).records[0].response == GOOD
    asked = {"prompt": ASK, "completion": f"{ASK} {GOOD}", "label": True}
    assert load(tmp_path, asked, {**asked, "label": False}).records[0].response.text == GOOD


def test_single_responses_that_begin_with_their_prompt_are_named_but_greetings_are_not(
    tmp_path: Path,
) -> None:
    twice = {**PAIR, "chosen": f"{ASK} {GOOD}"}
    assert "row 4, field 'chosen': begins with its prompt" in refused(
        tmp_path, PAIR, PAIR, PAIR, twice
    )
    hello = {"prompt": "Hello", "chosen": "Hello! What is it?", "rejected": "Helloes."}
    checked = load(tmp_path, PAIR, PAIR, PAIR, hello)
    assert checked.records[3].responses[0].text == "Hello! What is it?" and checked.notes == []
    assert "row 2, field 'chosen': is empty" in refused(
        tmp_path, {**PAIR, "chosen": f"{ASK} a", "rejected": f"{ASK} b"}, {**PAIR, "chosen": ""}
    )


MESSAGES = [user(), bot()]
NUMPY = (
    "[{'role': 'user', 'content': 'How do swifts sleep?'}\n {'role': 'assistant', 'content': 'In"
    " the air, in short naps.'}]"
)


@pytest.mark.parametrize(
    "written", [json.dumps(MESSAGES), repr(MESSAGES), NUMPY, json.dumps(MESSAGES, indent=1)]
)
def test_messages_written_as_a_string_are_parsed_and_that_is_said(
    tmp_path: Path, written: str
) -> None:
    rejected = written.replace(GOOD, BAD)
    for row in (
        {"prompt": ASK, "chosen": written, "rejected": rejected},
        {"chosen": written, "rejected": rejected},
        {"prompt": json.dumps([user()]), "chosen": GOOD, "rejected": BAD},
    ):
        checked = load(tmp_path, row)
        assert plain(checked.records[0]) and checked.notes == [
            "messages written as a string, parsed (in 1 row)"
        ]
    (record,) = load(tmp_path, {"messages": written}).records
    assert (list(record.prompt), record.response) == (PLAIN, GOOD)


def test_a_string_that_begins_as_messages_and_is_cut_is_refused_and_other_lists_are_text(
    tmp_path: Path,
) -> None:
    cut = {**PAIR, "chosen": repr(MESSAGES)[:-9]}
    assert "row 2, field 'chosen': looks like a list of messages written as a string" in refused(
        tmp_path, PAIR, cut
    )
    call = {**PAIR, "chosen": "[{'town': __import__('os')}]", "rejected": '[{"town": "Ulm"}]'}
    assert [r.text for r in pair_of(tmp_path, call).responses] == [call["chosen"], call["rejected"]]


TEMPLATED = {
    "ChatML": ("<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n", "{a}<|im_end|>"),
    "Llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{a}<|eot_id|>",
    ),
    "Gemma": (
        "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
        "{a}<end_of_turn>\n",
    ),
    "[INST]": ("<s>[INST] {q} [/INST]", " {a}</s>"),
    "Zephyr": ("<|user|>\n{q}</s>\n<|assistant|>\n", "{a}</s>"),
    "DeepSeek": ("<｜begin▁of▁sentence｜><｜User｜>{q}<｜Assistant｜>", "{a}<｜end▁of▁sentence｜>"),
    "alpaca": (
        (
            "Below is an instruction that describes a task. Write a response that appropriately"
            " completes the request.\n\n### Instruction:\n{q}\n\n### Response:\n"
        ),
        "{a}",
    ),
    "### Human": ("### Human: {q}\n### Assistant:", " {a}"),
    "USER: ASSISTANT:": ("USER: {q} ASSISTANT:", " {a}</s>"),
}


@pytest.mark.parametrize("template", TEMPLATED)
def test_texts_in_a_templates_markers_are_unwrapped_and_that_is_said(
    tmp_path: Path, template: str
) -> None:
    asked, answered = TEMPLATED[template]
    prompt, good, bad = asked.format(q=ASK), answered.format(a=GOOD), answered.format(a=BAD)
    checked = load(tmp_path, {"prompt": prompt, "chosen": good, "rejected": bad})
    (record,) = checked.records
    assert list(record.prompt) == PLAIN and [r.text.strip() for r in record.responses] == [
        GOOD,
        BAD,
    ]
    assert f"{template} markers in texts, unwrapped into messages (in 1 row)" in checked.notes
    whole = load(tmp_path, {"prompt": prompt, "chosen": prompt + good, "rejected": prompt + bad})
    assert plain(whole.records[0])
    assert plain(load(tmp_path, {"chosen": prompt + good, "rejected": prompt + bad}).records[0])
    (text,) = load(tmp_path, {"text": prompt + good}).records
    assert (list(text.prompt), text.response) == (PLAIN, GOOD)


def test_system_turns_in_a_templates_markers_are_kept(tmp_path: Path) -> None:
    prompts = [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n",
        f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n{ASK} [/INST]",
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n{ASK}<|end|>\n<|assistant|>\n",
        f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{ASK}<｜Assistant｜>",
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{ASK}<|eot_id|>",
    ]
    for prompt in prompts:
        record = pair_of(tmp_path, {**PAIR, "prompt": prompt})
        assert list(record.prompt) == [Message("system", SYSTEM), *PLAIN], prompt
    lead = (
        f"A chat between a curious user and an artificial intelligence assistant. USER: {ASK}"
        " ASSISTANT:"
    )
    assert pair_of(tmp_path, {**PAIR, "prompt": lead}).prompt[0].role == "system"


def test_alpacas_input_follows_its_instruction(tmp_path: Path) -> None:
    text = "### Instruction:\nSay when\n\n### Input:\nswifts sleep\n\n### Response:\nAt night."
    (record,) = load(tmp_path, {"text": text}).records
    assert (
        record.prompt == [Message("user", "Say when\nswifts sleep")]
        and record.response == "At night."
    )


@pytest.mark.parametrize(
    "prompt",
    [
        f"<|im_start|>user\n{ASK}\n<|im_start|>assistant\n",
        f"<|im_start|>user\n{ASK}<|im_end|> and more\n<|im_start|>assistant\n",
        f"<|im_start|>narrator\n{ASK}<|im_end|>\n<|im_start|>assistant\n",
        f"[INST] {ASK}",
        "<start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\n",
        "<|im_start|>",
    ],
)
def test_what_begins_as_a_template_and_does_not_go_on_so_is_refused(
    tmp_path: Path, prompt: str
) -> None:
    assert "row 2, field 'prompt'" in refused(tmp_path, PAIR, {**PAIR, "prompt": prompt})


def test_control_tokens_and_headings_in_prose_are_prose(tmp_path: Path) -> None:
    texts = (
        "What does <|im_start|> mean? And <|im_end|>?",
        "### Instruction manual\nHow do I read it?",
        "He said: USER: is a word.",
        "Is <s>this</s> HTML?",
    )
    for text in texts:
        record = pair_of(
            tmp_path,
            {
                "prompt": text,
                "chosen": f"{text} it is {GOOD}"[::-1],
                "rejected": "It is <s>out</s>",
            },
        )
        assert (
            record.prompt == [Message("user", text)]
            and record.responses[1].text == "It is <s>out</s>"
        )


def test_markers_around_messages_are_taken_off(tmp_path: Path) -> None:
    rows = {
        "messages": [
            user(f"<|im_start|>user\n{ASK}<|im_end|>\n"),
            bot(f"<|im_start|>assistant\n{GOOD}<|im_end|>"),
        ]
    }
    checked = load(tmp_path, rows)
    assert (list(checked.records[0].prompt), checked.records[0].response) == (PLAIN, GOOD)
    assert any("markers taken off messages" in note for note in checked.notes)
    whole = {
        "prompt": [user(f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n")],
        "chosen": GOOD,
        "rejected": BAD,
    }
    assert plain(pair_of(tmp_path, whole))


# ---- columns around the prompt

AROUND: dict[str, dict[str, Any]] = {
    "trl_explicit": PAIR,
    "question_pairs": {"question": ASK, "chosen": GOOD, "rejected": BAD},
    "alpaca_pairs": {"instruction": ASK, "chosen": GOOD, "rejected": BAD},
    "messages_pairs": {"messages": [user()], "chosen": GOOD, "rejected": BAD},
    "sharegpt_pairs": {"conversations": [human()], "chosen": gpt(), "rejected": gpt(BAD)},
    "trl_implicit": {"chosen": [user(), bot()], "rejected": [user(), bot(BAD)]},
    "kto": {"prompt": ASK, "completion": GOOD, "label": True},
    "prompt_completion": {"prompt": ASK, "completion": GOOD},
    "prompt_response": {"prompt": ASK, "response": GOOD},
    "alpaca": {"instruction": ASK, "output": GOOD},
    "messages": {"messages": [user(), bot()]},
    "sharegpt": {"conversations": [human(), gpt()]},
    "swift": {"query": ASK, "response": GOOD},
    "swift_pairs": {"messages": [user(), bot()], "rejected_response": BAD},
    "judgments": {"prompt": ASK, "response_a": GOOD, "response_b": BAD, "label": "a"},
    "best_of": {"prompt": ASK, "responses": [GOOD, BAD], "best": 0},
    "references": {"prompt": ASK, "reference": GOOD},
    "prompt_only": {"prompt": ASK},
    "alpaca_eval": {"instruction": ASK, "output_1": GOOD, "output_2": BAD, "preference": 1},
    "safe_rlhf": {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": 0},
    "helpsteer3": {
        "context": [user()],
        "response1": GOOD,
        "response2": BAD,
        "overall_preference": -1,
    },
    "prefloop": {
        "prompt": ASK,
        "responses": [GOOD, BAD],
        "votes": [{"annotator": "ann", "choice": 0}],
    },
    "nectar": {
        "prompt": ASK,
        "answers": [{"answer": GOOD, "rank": 1.0}, {"answer": BAD, "rank": 2.0}],
    },
    "ultrafeedback": {
        "instruction": ASK,
        "completions": [
            {"response": GOOD, "overall_score": 9},
            {"response": BAD, "overall_score": 2},
        ],
    },
    "helpsteer2_preference": {
        "prompt": ASK,
        "response_1": GOOD,
        "response_2": BAD,
        "preference_strength": -1,
    },
    "arena": {
        "conversation_a": [user(), bot()],
        "conversation_b": [user(), bot(BAD)],
        "winner": "model_a",
    },
    "hh": {"chosen": hh(ASK, GOOD), "rejected": hh(ASK, BAD)},
    "oasst_trees": {
        "message_tree_id": "t",
        "prompt": tree(
            ASK, "prompter", tree(GOOD, "assistant", rank=0), tree(BAD, "assistant", rank=1)
        ),
    },
    "mt_bench_questions": {"question_id": 1, "turns": [ASK]},
    "openai_preferences": {
        "input": {"messages": [user()]},
        "preferred_output": [bot()],
        "non_preferred_output": [bot(BAD)],
    },
    "text": {"text": f"### Human: {ASK}### Assistant: {GOOD}"},
}


@pytest.mark.parametrize("layout", AROUND)
@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
def test_system_history_and_tools_stand_around_the_prompt_in_every_layout(
    tmp_path: Path, layout: str, column: str
) -> None:
    history: Any = [[NEXT, MORE]] if column == "system" else [user(NEXT), bot(MORE)]
    tools: Any = [TOOL] if column == "system" else json.dumps([TOOL["function"]])
    more = {
        column: SYSTEM,
        "history": history,
        "functions" if column == "system_message" else "tools": tools,
    }
    checked = load(tmp_path, {**AROUND[layout], **more})
    assert checked.layout == layout
    (record,) = checked.records
    assert [turn.content for turn in record.prompt] == [SYSTEM, NEXT, MORE, ASK]
    assert [tool["function"] for tool in record.prompt.tools] == [TOOL["function"]]
    empty: dict[str, Any] = {column: "", "history": [], "tools": "[]"}
    (record,) = load(tmp_path, {**AROUND[layout], **empty}).records
    assert list(record.prompt) == PLAIN and record.prompt.tools == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"system": False}, "field 'system': is false, expected text"),
        ({"history": {}}, "field 'history': is an object"),
        (
            {"history": [["only one"]]},
            "field 'history.0': is a list, expected [user text, assistant text]",
        ),
        ({"history": [["", "x"]]}, "field 'history.0.0': is empty"),
        (
            {"system": "a", "system_prompt": "b"},
            "field 'system_prompt': says something else than 'system'",
        ),
        ({"tools": "look up"}, "field 'tools': is text that is no JSON"),
        ({"tools": [{"description": "nameless"}]}, "field 'tools.0.name': is empty"),
        (
            {"tools": [TOOL], "functions": [{"name": "other"}]},
            "field 'functions': offers other tools",
        ),
        (
            {"images": ["a.png"]},
            "field 'images': holds pictures, audio or video; prefloop trains on text",
        ),
        (
            {"input": "more"},
            "field 'input': looks like a part of the prompt, and nothing says where it belongs",
        ),
        ({"messages": [user(NEXT), bot(MORE)]}, "field 'messages': is another conversation"),
    ],
)
def test_a_column_beside_the_prompt_that_cannot_be_used_is_named(
    tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    assert f"row 2, {says}" in refused(tmp_path, PAIR, PAIR | more)


def test_the_same_system_text_twice_is_one_and_another_one_is_refused(tmp_path: Path) -> None:
    row = {
        "system": SYSTEM,
        "messages": [{"role": "developer", "content": f"{SYSTEM} "}, user(), bot()],
    }
    assert [turn.role for turn in load(tmp_path, row).records[0].prompt] == ["system", "user"]
    assert "row 2, field 'system': says something else" in refused(
        tmp_path, row, {**row, "system": "Else."}
    )


def test_prompts_as_text_and_as_messages_may_stand_in_one_file(tmp_path: Path) -> None:
    ended = [f"{GOOD}</s>", f"{BAD}</s>"]
    rows = [
        {"id": "a", "prompt": ASK, "response": ended[0]},
        {"id": "b", "prompt": [user()], "response": ended[1]},
    ]
    assert [record.response for record in load(tmp_path, *rows).records] == [GOOD, BAD]
    asked = [{"id": "a", "prompt": hh(ASK) + "\n\nAssistant:"}, {"id": "b", "prompt": [user(NEXT)]}]
    assert [record.prompt[0].content for record in load(tmp_path, *asked).records] == [ASK, NEXT]


def test_nulls_are_no_keys_and_one_more_column_goes_to_meta_and_is_named(tmp_path: Path) -> None:
    assert plain(pair_of(tmp_path, {**PAIR, "conversations": None, "system": None}))
    row = {
        "messages": [{**user(), "name": None}, {**bot(), "tool_calls": None}],
        "prompt": None,
        "completion": None,
        "label": True,
    }
    assert load(tmp_path, row).records[0].response.text == GOOD
    checked = load(tmp_path, {"prompt": ASK, "response": GOOD, "source": "forum"})
    assert checked.records[0].meta == {"source": "forum"} and checked.notes == [
        "columns kept in meta, not used: source"
    ]


# ---- messages


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ("User", "GPT"),
        ("user", "bot"),
        ("human", "chatgpt"),
        ("Human", "model"),
        ("prompter", "Assistant"),
        ("USER", "AI"),
    ],
)
def test_roles_are_read_in_any_convention_and_case(tmp_path: Path, asks: str, answers: str) -> None:
    (record,) = load(
        tmp_path,
        {"conversations": [{"from": asks, "value": ASK}, {"from": answers, "value": GOOD}]},
    ).records
    assert (list(record.prompt), record.response) == (PLAIN, GOOD)


def test_unknown_roles_are_named_even_where_every_row_has_one(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "teacher", "value": ASK}, gpt()]}] * 4
    said = refused(tmp_path, *rows)
    assert (
        "4 rows: field 'conversations.0.from': unknown role 'teacher'" in said
        and "layout sharegpt" in said
    )


def test_text_parts_are_joined_and_pictures_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How do "}, {"type": "text", "text": "swifts sleep?"}]
    row = {
        "prompt": [{"role": "user", "content": parts}],
        "chosen": [bot()],
        "rejected": [bot(BAD)],
    }
    assert plain(pair_of(tmp_path, row))
    picture = {
        **row,
        "prompt": [
            {"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}
        ],
    }
    assert (
        "field 'prompt.0.content.2': is a part of type 'image_url'; prefloop trains on text"
        in refused(tmp_path, row, picture)
    )


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        ({"role": "assistant", "content": None}, "content", "is missing"),
        ({"role": "assistant", "content": 5}, "content", "is a number, expected text"),
        ({"role": "assistant", "content": " "}, "content", "holds only whitespace"),
        ({"role": "assistant", "content": "a", "value": "b"}, "value", "says something else"),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "weight", "expected true or false"),
        ({"role": "assistant", "content": "a", "mask": 1}, "mask", "may mean learnt or left out"),
        ({"role": "assistant", "content": "a", "train": True, "weight": 0}, "train", "contradicts"),
        (
            {"role": "assistant", "content": "a", "train_detail": [{"begin_offset": 0}]},
            "train_detail",
            "marks parts",
        ),
        (
            {"role": "user", "content": "a", "tool_calls": [CALL]},
            "tool_calls",
            "the assistant alone calls tools",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": ""}}]},
            "tool_calls.0.name",
            "is empty",
        ),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom"}]},
            "tool_calls.0",
            "type 'custom'",
        ),
        (
            {"role": "function_call", "content": "look it up"},
            "content",
            "holds no tool call as JSON",
        ),
    ],
)
def test_a_message_that_cannot_be_read_is_named(
    tmp_path: Path, message: dict[str, Any], field: str, says: str
) -> None:
    said = refused(
        tmp_path, {"messages": MESSAGES}, {"messages": [user(), message, user(NEXT), bot(MORE)]}
    )
    assert f"row 2, field 'messages.1.{field}'" in said and says in said


def test_calls_results_and_thoughts_are_carried_and_other_keys_are_said(tmp_path: Path) -> None:
    turns = [
        user("Whose ring is B12?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [CALL],
            "reasoning": "I look.",
            "note": "no",
        },
        {"role": "tool", "tool_call_id": "r1", "name": "ring", "content": ""},
        bot("Ulm's.", reasoning_content="It says so."),
    ]
    checked = load(tmp_path, {"messages": turns, "tools": [TOOL]})
    (record,) = checked.records
    assert record.prompt[1].reasoning_content == "I look." and record.prompt[1].tool_calls[
        0
    ].arguments == {"number": "B12"}
    assert record.prompt[2] == Message("tool", "", tool_call_id="r1", name="ring")
    assert record.turns == [Message("assistant", "Ulm's.", "It says so.")]
    assert checked.notes == ["message keys not used: note"]
    (old,) = load(
        tmp_path,
        {
            "messages": [
                turns[0],
                {"role": "assistant", "function_call": {"name": "ring", "arguments": "B12?"}},
                {"role": "function", "name": "ring", "content": "Ulm"},
                bot("Ulm's."),
            ]
        },
    ).records
    assert old.prompt[1].tool_calls[0].arguments == "B12?" and old.prompt[2].role == "tool"


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0},
        {"loss": False},
        {"train": False},
        {"training": 0},
        {"mask": True},
        {"masked": True},
    ],
)
def test_masked_turns_are_context_and_a_demonstration_ends_with_the_last_learnt_one(
    tmp_path: Path, flag: dict[str, Any]
) -> None:
    masked = {"messages": [user(), bot(BAD, **flag), user(NEXT), bot(MORE)]}
    ends = {"messages": [user(), bot(), user(NEXT), bot(LESS, **flag)]}
    nothing = {"messages": [user(), bot(BAD, **flag)]}
    checked = load_demonstrations(write(tmp_path, masked, ends, nothing))
    first, second = checked.records
    assert ([turn.learn for turn in first.prompt], first.response) == ([True, False, True], MORE)
    assert (list(second.prompt), second.response) == (PLAIN, GOOD)
    assert "1 skipped: every assistant turn is masked out (weight 0)" in checked.describe()
    assert [len(prompt.prompt) for prompt in load_prompts(tmp_path / "f.jsonl").records] == [
        3,
        3,
        1,
    ]


def test_conversations_learn_every_turn_and_prompts_beside_an_answer_none(tmp_path: Path) -> None:
    turns = [user(), bot(), user(NEXT)]
    (record,) = load(tmp_path, {"messages": [*turns, bot(MORE)]}).records
    assert all(turn.learn for turn in record.prompt)
    for row in (
        {"prompt": turns, "completion": MORE},
        {"prompt": turns, "chosen": MORE, "rejected": LESS},
        {"prompt": turns, "completion": MORE, "label": 1},
    ):
        (record,) = load_demonstrations(write(tmp_path, row)).records
        assert [turn.learn for turn in record.prompt] == [
            True,
            False,
            True,
        ] and record.response == MORE


# ---- votes


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("true", "false"),
        ("True", "False"),
        ("1", "0"),
        ("up", "down"),
    ],
)
@pytest.mark.parametrize("column", ["label", "thumb", "kto_tag", "desirable"])
def test_a_plain_yes_or_no_is_a_thumb(tmp_path: Path, up: Any, down: Any, column: str) -> None:
    for row in (
        {"prompt": ASK, "completion": GOOD},
        {"prompt": ASK, "response": GOOD},
        {"instruction": ASK, "output": GOOD},
        {"messages": MESSAGES},
    ):
        found = load_ratings(write(tmp_path, {**row, column: up}, {**row, column: down}))
        assert [rating.votes[0].value for rating in found.records] == [
            "up",
            "down",
        ] and found.layout == "kto"


def test_other_words_are_asked_about_by_name(tmp_path: Path) -> None:
    row = {"prompt": ASK, "completion": GOOD}
    said = refused(tmp_path, {**row, "label": True}, {**row, "label": "fine"}, {**row, "label": 5})
    assert "row 2, field 'label': is 'fine', expected true or false (or 1, up; 0, down)" in said
    assert "row 3, field 'label': is a number, expected true or false" in said


def test_a_rating_of_five_is_no_thumb_and_is_asked_about(tmp_path: Path) -> None:
    assert "which numbers are a thumb up, the file does not say" in refused(
        tmp_path, {"prompt": ASK, "response": GOOD, "rating": 5}
    )
    assert load(tmp_path, {"prompt": ASK, "response": GOOD, "rating": "down"}).kind == "Rating"


# ---- what is told


def test_bad_rows_are_told_by_their_faults_without_power_over_the_terminal(tmp_path: Path) -> None:
    rows = [{**PAIR, "chosen": ""}] * 3 + [
        {"prompt": ASK, "rejected": BAD, "\x1b[31m" + "k" * 99: 1}
    ]
    said = refused(tmp_path, *rows)
    assert "3 rows: field 'chosen': is empty (the first is row 1)" in said
    assert (
        "row 4, field 'chosen': is missing (found: prompt, rejected, ␛[31mkkk" in said
        and "\x1b" not in said
    )
    many = {f"column {n}": n for n in range(30_000)}
    assert len(refused(tmp_path, many, layout="trl_explicit")) < 2000


def test_infinite_numbers_deep_nesting_and_orders_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(
        json.dumps(PAIR) + '\n{"prompt": "q", "chosen": "a", "rejected": "b", "score": 1e999}\n'
    )
    with pytest.raises(DataError, match=r"row 2.*(is not a finite number|1e999)"):
        load_comparisons(path)
    shown = {
        "id": "c",
        "prompt": [user()],
        "responses": [{"text": "a"}, {"text": "b"}],
        "meta": {"shown": [1, 0]},
    }
    for wrong in ("left", 3, [0], [0, 0], [True, False]):
        bad = {**shown, "id": "d", "meta": {"shown": wrong}}
        assert "row 2, field 'meta.shown': is no order" in refused(tmp_path, shown, bad)
    answer = {"id": "p", "prompt": [user()], "response": "a", "finished": "no", "tokens": 1}
    assert "row 2, field 'finished': is text, expected true or false" in refused(
        tmp_path, {**answer, "finished": True}, answer
    )
    deep: Any = "x"
    for _ in range(99):
        deep = [deep]
    found = load_comparisons(write(tmp_path, {**PAIR, "deep": deep}))
    sources.write_jsonl(tmp_path / "again.jsonl", found.records)
    assert load_comparisons(tmp_path / "again.jsonl").records == found.records


def test_more_columns_beside_our_own_records_are_kept_and_named(tmp_path: Path) -> None:
    votes = [{"annotator": "u", "choice": 1}]
    row = {
        "id": "a",
        "prompt": "q",
        "responses": ["a", {"text": "b", "model": "m"}],
        "votes": votes,
        "topic": "t",
    }
    found = load_comparisons(write(tmp_path, row))
    (pair,) = found.records
    assert [r.text for r in pair.responses] == ["a", "b"] and pair.responses[1].meta == {
        "model": "m"
    }
    assert pair.meta == {"topic": "t"} and pair.votes[0].choice == 1
    assert found.notes == [
        "keys of responses kept in their meta: model (in 1 row)",
        "columns kept in meta, not used: topic",
    ]


def test_check_prints_layout_and_reason_counts_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        **PAIR,
        "prompt": f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n",
        "note": 1,
    }
    path = write(tmp_path, row, {**row, "chosen": ""})
    assert guarded(_main, ["check", str(path), "--quarantine", str(tmp_path / "aside")]) == 0
    said = capsys.readouterr().out
    assert (
        "1 comparison from f.jsonl (trl_explicit: columns prompt, chosen, rejected), 1 row"
        " quarantined" in said
    )
    assert "ChatML markers in texts, unwrapped into messages (in 1 row)" in said
    assert (
        "columns kept in meta, not used: note" in said and "row 2, field 'chosen': is empty" in said
    )
