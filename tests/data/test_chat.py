"""Chat templates to ids: one BOS, the end of turn inside the loss, prompts that are prefixes."""

from pathlib import Path

import pytest
from tiny import TOKENIZERS, load, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

from prefloop.data.chat import CHATML, ChatFormat
from prefloop.data.encode import Encoder, LabeledPair, preference_group
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.records import Comparison, Message, Response

PROMPT = [Message("system", "Be kind."), Message("user", "How will the weather be? Żółć 🙂")]
WITH_TEMPLATE = [name for name in TOKENIZERS if name != "no-template"]


def sampled(chat: ChatFormat, text: str, finished: bool = True) -> list[int]:
    """Ids of a sampled answer to ``PROMPT``."""
    return chat.answer(PROMPT, Response(text, meta={"finished": finished})).ids


def chat_of(variant: str, tmp_path: Path, template: str = "model") -> ChatFormat:
    tiny_tokenizer(variant).save_pretrained(tmp_path / variant)
    return ChatFormat.load(AutoTokenizer.from_pretrained(tmp_path / variant), template)


@pytest.mark.parametrize("variant", WITH_TEMPLATE)
def test_a_prompt_has_the_one_bos_that_the_model_knows(variant: str, tmp_path: Path) -> None:
    chat = chat_of(variant, tmp_path)
    ids = chat.prompt_ids(PROMPT)
    bos = chat.tokenizer.convert_tokens_to_ids("<s>")
    assert ids.count(bos) == (1 if variant.startswith("bos") else 0)
    assert ids[0] == (
        bos if variant.startswith("bos") else chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    )
    assert not chat.doubled_bos(ids)
    assert chat.doubled_bos([bos, *ids]) == variant.startswith("bos")


@pytest.mark.parametrize("variant", WITH_TEMPLATE)
def test_a_response_never_gets_a_bos(variant: str, tmp_path: Path) -> None:
    chat = chat_of(variant, tmp_path)
    assert chat.tokenizer.convert_tokens_to_ids("<s>") not in sampled(chat, "It will be good.")


@pytest.mark.parametrize("variant", WITH_TEMPLATE)
def test_a_finished_response_ends_in_the_end_of_turn_and_a_cut_one_does_not(
    variant: str, tmp_path: Path
) -> None:
    chat = chat_of(variant, tmp_path)
    finished, cut = (
        sampled(chat, "It will be good."),
        sampled(chat, "It will be good.", finished=False),
    )
    assert finished == [*cut, chat.stop_id]
    assert chat.stop_id not in cut
    assert chat.decode(finished) == chat.decode(cut) == "It will be good."


@pytest.mark.parametrize("variant", WITH_TEMPLATE)
def test_prompt_plus_response_is_what_the_template_writes(variant: str, tmp_path: Path) -> None:
    chat = chat_of(variant, tmp_path)
    messages = [
        {"role": m.role, "content": m.content}
        for m in [*PROMPT, Message("assistant", "It will be good.")]
    ]
    whole = chat.tokenizer(
        chat.tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False
    )["input_ids"]
    if variant == "bos":
        whole = [chat.tokenizer.bos_token_id, *whole]
    prompt, response = chat.prompt_ids(PROMPT), sampled(chat, "It will be good.")
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) : len(prompt) + len(response)] == response


@pytest.mark.parametrize(
    ("variant", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("pad-is-eos", "<|im_end|>"),
        ("turn-end", "<end_of_turn>"),
        ("turn-end-then-eos", "<end_of_turn>"),
    ],
)
def test_the_stop_token_is_the_one_that_ends_a_turn_in_the_template(
    variant: str, end: str, tmp_path: Path
) -> None:
    chat = chat_of(variant, tmp_path)
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop_id) == end


def test_eos_ends_the_turn_when_the_template_writes_nothing_after_it(tmp_path: Path) -> None:
    template = tmp_path / "bare.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    )
    chat = chat_of("chatml", tmp_path, str(template))
    assert chat.stop_id == chat.tokenizer.eos_token_id
    assert chat.prompt_ids([Message("user", "try")]) == chat.tokenizer("user: try\n")["input_ids"]


def test_pad_may_equal_the_stop_token_and_is_kept(tmp_path: Path) -> None:
    chat = chat_of("pad-is-eos", tmp_path)
    assert chat.pad_id == chat.stop_id
    assert sampled(chat, "good")[-1] == chat.stop_id
    assert chat_of("chatml", tmp_path).pad_id != chat.stop_id


def test_a_model_without_a_template_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "bare-model", tokenizer="no-template")
    with pytest.raises(
        ModelError,
        match=(
            r"bare-model has no chat template: set backbone\.chat_template to 'chatml' or to a"
            r" Jinja file"
        ),
    ):
        load(folder)
    assert load(folder, chat_template="chatml").chat.prompt_ids(PROMPT)


def test_chatml_replaces_any_template_and_adds_no_system_message(tmp_path: Path) -> None:
    chat = chat_of("turn-end", tmp_path, "chatml")
    assert chat.tokenizer.chat_template == CHATML
    expected = "<|im_start|>user\ntry<|im_end|>\n<|im_start|>assistant\n"
    assert chat.tokenizer.decode(chat.prompt_ids([Message("user", "try")])) == expected
    assert chat.tokenizer.convert_ids_to_tokens(chat.stop_id) == "<|im_end|>"


def test_chatml_on_a_tokenizer_without_its_tokens_names_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    other = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(text), eos_token="<|im_end|>"
    )
    with pytest.raises(ModelError, match=r"\['<\|im_start\|>'\]"):
        ChatFormat.load(other, "chatml")


def test_an_unknown_template_name_is_a_config_error() -> None:
    with pytest.raises(
        ConfigError, match=r"chat_template: 'chatlm' is neither 'model', 'chatml' nor a file"
    ):
        ChatFormat.load(tiny_tokenizer(), "chatlm")


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(ChatFormat.load(tiny_tokenizer()), max_length=60)


def test_a_prompt_that_leaves_no_room_names_record_and_lengths(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"prompt 'row-7' .* has \d+ tokens.*max_length = 60"):
        encoder.prompt("row-7", [Message("user", "Why? " * 40)])


def answer(encoder: Encoder, text: str, prompt_length: int, **meta: bool) -> list[int]:
    found = encoder.response(
        "a", [Message("user", "try")], Response(text, meta=meta), prompt_length
    )
    assert all(found.learn)
    return found.ids


def test_a_long_response_is_cut_without_its_end_and_counted(encoder: Encoder) -> None:
    prompt = encoder.prompt("a", [Message("user", "try")])
    short = answer(encoder, "good", len(prompt))
    assert short[-1] == encoder.chat.stop_id
    assert encoder.cut == 0
    long = answer(encoder, "word " * 60, len(prompt))
    assert len(prompt) + len(long) == 60
    assert encoder.chat.stop_id not in long
    assert encoder.cut == 1


def test_a_response_that_just_fits_keeps_its_end(encoder: Encoder) -> None:
    ids = answer(encoder, "good", 0)
    assert answer(encoder, "good", 60 - len(ids)) == ids
    assert answer(encoder, "good", 61 - len(ids)) == ids[:-1]


def test_an_empty_unfinished_response_still_has_a_token(encoder: Encoder) -> None:
    assert answer(encoder, "", 10, finished=False) == [encoder.chat.stop_id]


def comparison(name: str, prompt: str, *texts: str) -> Comparison:
    return Comparison(name, [Message("user", prompt)], [Response(t) for t in texts])


def test_pairs_of_one_prompt_share_it_and_their_common_responses(encoder: Encoder) -> None:
    rows = [
        (comparison("1", "try", "one", "two"), 1.0, 1.0),
        (comparison("3", "try", "two", "three"), 0.25, 2.0),
    ]
    group = preference_group(rows, encoder, first_key=7)
    assert group is not None
    assert group.pairs == [LabeledPair(0, 1, 1.0, 1.0), LabeledPair(1, 2, 0.25, 2.0)]
    assert group.document.keys == [7, 8, 9]
    assert encoder.chat.decode(group.document.responses_ids[2]) == "three"


def test_a_pair_that_cutting_made_equal_is_left_out(encoder: Encoder) -> None:
    same_start = "word " * 60
    pair = comparison("1", "try", same_start + "a", same_start + "b")
    assert preference_group([(pair, 1.0, 1.0)], encoder) is None
    assert encoder.cut == 2


def test_an_unfinished_candidate_is_encoded_without_its_end(encoder: Encoder) -> None:
    row = Comparison(
        "1",
        [Message("user", "try")],
        [Response("good", meta={"finished": False}), Response("good")],
    )
    group = preference_group([(row, 1.0, 1.0)], encoder)
    assert group is not None
    assert group.document.responses_ids[1] == [
        *group.document.responses_ids[0],
        encoder.chat.stop_id,
    ]
