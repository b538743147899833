"""Tokenizers with the control tokens and chat templates of known model families, made in
milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefloop.data.chat import CHATML

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    (
        'user assistant system tool model weather {"name": "weather", "arguments": {"town": "Ulm"}}'
        " think"
    ),
]
# Special tokens, the end of a turn, added tokens that are not special.
TOKENS = {
    "chatml": (["<|im_start|>", "<|im_end|>"], "<|im_end|>", []),
    "qwen": (
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        "<|im_end|>",
        ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    ),
    "llama3": (
        [
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ],
        "<|eot_id|>",
        [],
    ),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", []),
}
FAMILIES: dict[str, tuple[str, str | None]] = {
    "chatml": ("chatml", None),
    **{
        name: ("qwen", name)
        for name in ("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_instruct_2507")
    },
    **{name: ("llama3", name) for name in ("llama3", "llama3_1")},
    **{name: ("gemma", name) for name in ("gemma", "gemma3")},
}
"""Name of a template: its kind of tokens and TRL's file of it; ``NAME_training`` has
``{% generation %}`` markers.
"""
TRAINING = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "gemma", "gemma3")


def family(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family; of ``NAME_training`` with the template that marks the assistant's
    words.
    """
    kind, file = FAMILIES[name.removesuffix("_training")]
    special, eos, added = TOKENS[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=[*special, "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens(added)
    bos = next((token for token in special if token in ("<bos>", "<|begin_of_text|>")), None)
    training = "_training" if name.endswith("_training") else ""
    template = CHATML if file is None else (TEMPLATES / f"{file}{training}.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token="<|pad|>",
        bos_token=bos,
        chat_template=template,
    )
