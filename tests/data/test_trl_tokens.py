"""Token ids and masks beside TRL's trainers: the same conversations, the same templates, what each
would train on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from families import TRAINING, family
from tiny import tiny_model
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from prefloop.data.chat import ChatFormat
from prefloop.records import Conversation, Message, Response, ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
CALL = Message("assistant", "Let me look.", tool_calls=[ToolCall("weather", {"town": "Ulm"})])
TALK = [
    Message("user", "Hi there"),
    Message("assistant", "Hello.  What now?"),
    Message("user", "And then?\n"),
    Message("assistant", "The lazy dog — über 3 foxes."),
]
AGENT = [
    Message("system", "Be brief."),
    Message("user", "Weather in Ulm?"),
    CALL,
    Message("tool", "rain", name="weather"),
    Message("assistant", "It rains in Ulm."),
    Message("user", "Thanks!"),
    Message("assistant", "You are welcome."),
]
CALLERS = ("qwen2_5", "qwen3", "qwen3_instruct_2507")
"""Families whose templates show tools."""


def settings(kind: type, tmp_path: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        **more,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("name", TRAINING)
def test_sft_rows_equal_those_of_trl_with_assistant_only_loss(
    name: str, model: Any, tmp_path: Path
) -> None:
    tokenizer = family(f"{name}_training")
    chat = ChatFormat.load(tokenizer)
    conversations = [Conversation(TALK)] + [Conversation(AGENT, TOOLS)] * (name in CALLERS)
    rows = [
        {"messages": [m.to_dict() for m in c], **({"tools": c.tools} if c.tools else {})}
        for c in conversations
    ]
    for conversation, row in zip(conversations, rows, strict=True):
        trainer = SFTTrainer(
            model,
            settings(SFTConfig, tmp_path, assistant_only_loss=True),
            train_dataset=Dataset.from_list([row]),
            processing_class=tokenizer,
        )
        theirs = trainer.train_dataset[0]
        (ours,) = chat.sequences(
            Conversation(conversation[:-1], conversation.tools), conversation[-1:]
        )
        assert ours.ids == theirs["input_ids"]
        assert [label != -100 for label in theirs["labels"]] == ours.learn
        assert ours.turns == sum(turn.role == "assistant" for turn in conversation)


@pytest.mark.parametrize("name", [*CALLERS, "llama3_1", "llama3", "gemma"])
def test_pairs_equal_those_of_trls_dpo_with_tools(name: str, model: Any, tmp_path: Path) -> None:
    """TRL's answers end in what the template writes behind the end of a turn (Qwen's line break);
    ours end where the sampler stops.
    """
    tokenizer = family(name)
    chat = ChatFormat.load(tokenizer)
    tools = TOOLS if name in (*CALLERS, "llama3_1") else []
    prompt = Conversation(TALK[:-1], tools)
    call = Message("assistant", "", tool_calls=CALL.tool_calls)
    pair = [
        call if tools else Message("assistant", "Rain."),
        Message("assistant", "Let me guess: sun."),
    ]
    row = {
        "prompt": [m.to_dict() for m in prompt],
        "chosen": [pair[0].to_dict()],
        "rejected": [pair[1].to_dict()],
        **({"tools": tools} if tools else {}),
    }
    trainer = DPOTrainer(
        model,
        args=settings(DPOConfig, tmp_path),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
    )
    theirs = trainer.train_dataset[0]
    start = chat.prompt_ids(prompt)
    for key, turn in zip(("chosen_ids", "rejected_ids"), pair, strict=True):
        ours = chat.answer(prompt, Response.of([turn]))
        whole = theirs["prompt_ids"] + theirs[key]
        assert start + ours.ids == whole[: len(start) + len(ours.ids)]
        assert tokenizer.decode(whole[len(start) + len(ours.ids) :]).strip() == ""
        assert ours.ids[-1] == chat.stop_id and all(ours.learn)
