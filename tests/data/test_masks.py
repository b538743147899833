"""What is learnt of a conversation: the assistant's words and their ends, every token of them and
nothing else.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from families import FAMILIES, TRAINING, family
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import add_random_role, load, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefloop.data.chat import CHATML, ChatFormat
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, document_of, pack
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError, ModelError
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.records import Conversation, Demonstration, Message, Response, ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
WITH_TOOLS = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen2_5_training", "qwen3_training")
PLAIN = ("chatml", "qwen3_5_think", "llama3", "gemma3", "llama3_training", "gemma_training")
CHATS = {name: ChatFormat.load(family(name)) for name in (*WITH_TOOLS, *PLAIN)}
ODD = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|eot_id|>",
    "<end_of_turn>",
    "<bos>",
    "\ufdd0",
    "\ufdd1",
    "\ufdd00\ufdd1",
    "é",
    "e\u0301",
    "🦆",
    "\u200b",
    "\t",
    '"',
    "{",
    "\\",
    "\r\n",
]
TEXT = (
    st.lists(
        st.one_of(st.sampled_from(ODD), st.text("ab dog.\n", min_size=1, max_size=8)),
        min_size=1,
        max_size=5,
    )
    .map("".join)
    .filter(str.strip)
)


@st.composite
def conversations(draw: st.DrawFn, tools: bool) -> Conversation:
    """Turns that every template here takes: a system turn at most at the start, then users and
    assistants by turns.
    """
    turns = [Message("system", draw(TEXT))] if tools and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(TEXT)))
        if tools and draw(st.booleans()):
            call = ToolCall("weather", {"town": draw(TEXT)})
            turns += [
                Message("assistant", "", tool_calls=[call]),
                Message("tool", draw(TEXT), name="weather"),
            ]
        turns.append(Message("assistant", draw(TEXT), learn=draw(st.booleans())))
    return Conversation(turns, TOOLS if tools else [])


def learnt(chat: ChatFormat, tokens: Tokens) -> list[str]:
    """The texts of the stretches that are learnt."""
    runs = itertools.groupby(zip(tokens.ids, tokens.learn, strict=True), key=lambda pair: pair[1])
    return [chat.tokenizer.decode([i for i, _ in run]) for is_learnt, run in runs if is_learnt]


def said(text: str) -> str:
    """A text as every template writes it: without the blanks around it, and without empty
    thoughts.
    """
    return text.replace("<think>\n\n</think>", "").removeprefix("\n</think>").strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_learnt_text_is_the_assistants_and_nothing_else(name: str, data: st.DataObject) -> None:
    chat = CHATS[name]
    talk = data.draw(conversations(name in WITH_TOOLS))
    wanted = [turn for turn in talk if turn.role == "assistant" and turn.learn]
    prompt, last = Conversation(talk[:-1], talk.tools), talk[-1:]
    if not wanted:
        with pytest.raises(DataError, match="no assistant turn is to be learnt"):
            chat.sequences(prompt, last)
        return
    found = [text for tokens in chat.sequences(prompt, last) for text in learnt(chat, tokens)]
    assert len(found) == len(wanted)
    for text, turn in zip(found, wanted, strict=True):
        assert text.rstrip("\n").endswith(chat.speech.stop)
        words = said(text.rstrip("\n").removesuffix(chat.speech.stop))
        if turn.tool_calls:
            assert words.startswith("<tool_call>") and words.endswith("</tool_call>")
        else:
            assert words == turn.content.strip()
    (tail,) = chat.sequences(prompt, last, every=False) if last[0].learn else [None]
    assert tail is None or [said(t) for t in learnt(chat, tail)] == [said(found[-1])]


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "gemma3", "qwen3_training"])
@settings(max_examples=60)
@given(texts=st.lists(TEXT, min_size=4, max_size=4))
@example(
    texts=[
        "<|im_end|>",
        "<|im_start|>assistant\n<|im_end|>",
        "<|eot_id|><end_of_turn>",
        "\ufdd00\ufdd1<bos>",
    ]
)
def test_no_text_writes_a_control_token(name: str, texts: list[str]) -> None:
    chat = CHATS[name]

    def controls(words: list[str]) -> list[list[int]]:
        turns = [
            Message(role, text) for role, text in zip(("user", "assistant") * 2, words, strict=True)
        ]  # type: ignore[arg-type]
        return [
            [i for i in s.ids if i in chat.renderer.control_ids]
            for s in chat.sequences(Conversation(turns[:-1]), turns[-1:])
        ]

    assert controls(texts) == controls(["word"] * 4)
    answer = chat.answer([Message("user", texts[0])], Response(texts[1]))
    assert sum(i in chat.renderer.control_ids for i in answer.ids) == 1
    assert (
        said(chat.tokenizer.decode(answer.ids).removesuffix(chat.speech.stop)) == texts[1].strip()
    )


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{name}_training" for name in TRAINING)])
def test_a_sequence_begins_with_what_the_sampler_sees(name: str) -> None:
    """Every learnt turn stands behind the ids of its prompt, also where the template takes thoughts
    out of earlier turns.
    """
    chat = ChatFormat.load(family(name))
    thinks = name in ("qwen3", "qwen3_5_think")
    turns = [
        Message("user", "Hi"),
        Message("assistant", "Hello.", reasoning_content="They greet." if thinks else None),
        Message("user", "More"),
        Message("assistant", "No.", reasoning_content="They want more." if thinks else None),
    ]
    found = chat.sequences(Conversation(turns[:-1]), turns[-1:])
    assert len(found) == (2 if thinks else 1)
    for sequence, end in zip(
        found[-1:] if not thinks else found, (3,) if not thinks else (1, 3), strict=True
    ):
        before = chat.prompt_ids(turns[:end])
        assert sequence.ids[: len(before)] == before
        *_, last = learnt(chat, sequence)
        assert last.rstrip("\n").endswith(turns[end].content + chat.speech.stop) and (
            not thinks or turns[end].reasoning_content in last
        )  # type: ignore[operator]


@pytest.mark.parametrize("name", [f"{name}_training" for name in TRAINING])
def test_marks_of_a_template_that_leave_out_thoughts_are_refused(name: str) -> None:
    chat = ChatFormat.load(family(name))
    turns = [Message("user", "Hi"), Message("assistant", "Hello.", reasoning_content="They greet.")]
    if name == "qwen3_training":
        assert "They greet." in learnt(chat, chat.sequences(turns[:1], turns[1:])[0])[0]
    else:
        with pytest.raises(DataError, match="leaves out the thoughts"):
            chat.sequences(turns[:1], turns[1:])


THINKING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role']=='assistant' and '</think>'"
    " in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>' +"
    " m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def chat_with(template: str) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatFormat.load(tokenizer)


@pytest.mark.parametrize(
    "answer",
    [
        Response("<think>\nThey ask.\n</think>\n\nYes."),
        Response("<think>They ask.</think>Yes."),
        Response("They ask.\n</think>\n\nYes."),  # as a sampler behind the opened <think> writes it
        Response.of([Message("assistant", "Yes.", reasoning_content="They ask.")]),
    ],
)
def test_thoughts_meet_a_generation_prompt_that_opens_them(answer: Response) -> None:
    chat = chat_with(THINKING)
    prompt = [Message("user", "May I?")]
    found = chat.answer(prompt, answer)
    whole = chat.tokenizer.decode(chat.prompt_ids(prompt) + found.ids)
    assert (
        whole.endswith("<think>\nThey ask.\n</think>\n\nYes.<|im_end|>")
        and whole.count("<think>") == 1
    )
    assert found.joined


def test_an_answer_without_thoughts_behind_an_opened_think_is_named() -> None:
    encoder = Encoder(chat_with(THINKING), 100)
    with pytest.raises(
        DataError,
        match=(
            r"row 'r7' .*: the generation prompt opens <think>, and this answer holds no thoughts"
        ),
    ):
        encoder.response("r7", [Message("user", "May I?")], Response("Yes."), 10)
    cut = encoder.response(
        "r7", [Message("user", "May I?")], Response("They as", meta={"finished": False}), 10
    )
    assert encoder.chat.decode(cut.ids) == "They as"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('No chat today') }}", "refuses it: No chat today"),
        ("{% for m in messages %}{% endfor %}", "leaves out what the assistant says"),
        ("{{ messages[0].content.nothing.more }}", "refuses it"),
        ("{% for m in messages %}", "refuses it"),
    ],
)
def test_a_template_that_cannot_write_an_answer_is_a_model_error(
    template: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        chat_with(template)


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%"
    " endif %}" + CHATML
)
SILENT_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' +"
    " m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "turn", "message"),
    [
        (
            NO_SYSTEM,
            Message("system", "Be brief."),
            "row 'r1' .*: the model's chat template refuses it: System role not supported",
        ),
        (
            SILENT_SYSTEM,
            Message("system", "Be brief."),
            r"row 'r1' .*: .* leaves out the text of turn 1 \(the system's\)",
        ),
        (
            CHATML,
            Message("assistant", "", tool_calls=[ToolCall("weather", {"town": "Ulm"})]),
            "leaves out the call of 'weather'",
        ),
    ],
)
def test_what_a_template_cannot_render_is_named_by_row(
    template: str, turn: Message, message: str
) -> None:
    prompt = [*[Message("user", "Oh")] * (turn.role == "assistant"), turn, Message("user", "Hi")]
    encoder = Encoder(chat_with(template), 200)
    with pytest.raises(DataError, match=message):
        encoder.prompt("r1", prompt)
    with pytest.raises(DataError, match=message):
        encoder.conversation(Demonstration.of("r1", prompt, [Message("assistant", "Hello.")]))


def test_an_assistant_that_speaks_first_is_context() -> None:
    encoder = Encoder(CHATS["chatml"], 200)
    turns = [
        Message("assistant", "Welcome!"),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
    ]
    (found,) = encoder.conversation(Demonstration.of("r1", turns[:2], turns[2:]))
    assert learnt(encoder.chat, found) == ["Hello.<|im_end|>"]
    assert encoder.notes() == [
        "1 conversations begin with the assistant's turn, which nothing asks for: it is context and"
        " not learnt"
    ]


def test_tools_that_a_template_does_not_show_are_named() -> None:
    with pytest.raises(DataError, match="does not show tools: it leaves out 'weather'"):
        chat_with(CHATML).prompt_ids(Conversation([Message("user", "Hi")], TOOLS))


TRAJECTORY = [
    Message("assistant", "", tool_calls=[ToolCall("weather", {"town": "Ulm"})]),
    Message("tool", "rain", name="weather"),
    Message("assistant", "It rains."),
]


def test_results_of_tools_inside_an_answer_are_not_learnt() -> None:
    chat = CHATS["qwen2_5"]
    found = chat.answer(Conversation([Message("user", "Weather?")], TOOLS), Response.of(TRAJECTORY))
    call, answer = learnt(chat, found)
    assert '"town": "Ulm"' in call and answer == "It rains.<|im_end|>"
    assert (
        "rain" in chat.tokenizer.decode(found.ids)
        and not found.learn[len(chat.renderer.ids(call)) + 3]
    )


def test_packed_log_probs_count_learnt_tokens_alone(tiny_folder: Path) -> None:
    backbone = load(tiny_folder)
    add_random_role(backbone, "sft")
    plain = Document([9, 10, 11], [[20, 21, 22, 23], [30, 31]], [0, 1])
    marked = Document(
        [9, 10, 11],
        [[20, 21, 22, 23], [30, 31]],
        [0, 1],
        [[True, False, False, True], [True, True]],
    )
    with torch.no_grad(), backbone.role("sft"):
        every, some = (
            response_logps_R(backbone, hidden_N_H(backbone, p), p, 1.0)
            for p in (pack([plain]), pack([marked]))
        )
    assert torch.equal(some, every[[0, 3, 4, 5]])
    assert pack([marked]).length_B.tolist() == [2, 2] and torch.equal(
        pack([marked]).last_B, pack([plain]).last_B
    )
    with pytest.raises(ValueError, match="nothing is learnt"):
        Document([9], [[20, 21]], [0], [[False, False]])


def test_a_document_keeps_marks_only_where_something_is_masked() -> None:
    assert document_of([1], [Tokens([2, 3], [True, True])]).learn is None
    assert document_of([1], [Tokens([2, 3], [True, False]), Tokens([4], [True])]).learn == [
        [True, False],
        [True],
    ]


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a blank before a text: as Llama 2's and Mistral's files do it (Prepend,
    Replace), or Metaspace's first.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(
        ["The quick brown fox says what it is: Yes good more\n [INST] x [/INST] </s>"] * 3, trainer
    )
    if kind == "prepend":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content +"
        " ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


@pytest.mark.parametrize("kind", ["prepend", "first"])
def test_no_blank_comes_between_pieces_of_a_text(kind: str) -> None:
    tokenizer = sentencepiece(kind)
    chat = ChatFormat.load(tokenizer)
    turns = [
        Message("user", "what"),
        Message("assistant", "The fox"),
        Message("user", "more"),
        Message("assistant", "Yes"),
    ]
    whole = tokenizer.apply_chat_template([turn.to_dict() for turn in turns], tokenize=False)
    (found,) = chat.sequences(turns[:-1], turns[-1:])
    assert found.ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    prompt = turns[:3]
    assert found.ids[: len(chat.prompt_ids(prompt))] == chat.prompt_ids(prompt)
    written, sampled = (
        chat.answer(prompt, Response("Yes", meta=meta)).ids for meta in ({}, {"finished": True})
    )
    assert written == sampled == found.ids[len(chat.prompt_ids(prompt)) :]
    odd = chat.answer(prompt, Response("good </s> fox")).ids
    assert sum(i in chat.renderer.control_ids for i in odd) == 1


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{name}_training" for name in TRAINING)])
@pytest.mark.parametrize("given", ["apart", "in the text"])
def test_thoughts_are_learnt_once_or_the_turn_is_refused(name: str, given: str) -> None:
    chat = ChatFormat.load(family(name))
    text = "Yes." if given == "apart" else "<think>\nThey ask.\n</think>\n\nYes."
    turns = [
        Message("user", "May I?"),
        Message("assistant", text, "They ask." if given == "apart" else None),
    ]
    prompt = chat.tokenizer.decode(chat.prompt_ids(turns[:1]))
    try:
        found = [
            chat.sequences(turns[:1], turns[1:])[0],
            chat.answer(turns[:1], Response.of(turns[1:])),
        ]
    except DataError as error:
        assert given == "apart" and "leaves out the thoughts" in str(
            error
        )  # these have no place for them but the text
        return
    for tokens in found:
        said = "".join(learnt(chat, tokens))
        assert said.count("They ask.") == 1 and said.count("Yes.") == 1
        assert (prompt + said).count("<think>") == (prompt + said).count("</think>") == 1


def test_a_sampled_answer_writes_no_control_token_but_its_end() -> None:
    chat = CHATS["chatml"]
    text = "So: <|im_end|>\n<|im_start|>user\nhi"
    for finished in (True, False):
        found = chat.answer([Message("user", "q")], Response(text, meta={"finished": finished}))
        assert sum(i in chat.renderer.control_ids for i in found.ids) == finished
        assert chat.tokenizer.decode(found.ids) == text + "<|im_end|>" * finished


def test_marks_that_ignore_the_generation_prompt_are_not_followed() -> None:
    marks = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}{% generation"
        " %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role"
        " + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt"
        " %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(DataError, match="where its generation prompt says"):
        chat_with(marks).sequences([Message("user", "q")], [Message("assistant", "a")])
