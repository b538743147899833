"""Models of a shape with random weights, and rows with lengths like hh-rlhf's: what the GPU benchmarks run on."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "deep": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 28, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True},
}  # fmt: skip


def rows(count: int, vocabulary: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected ids; log-normal lengths: prompts mean 150 σ .9 in 8-700, responses mean 110 σ .8 in 4-320."""
    draw = random.Random(0)

    def ids(mean: float, sigma: float, low: int, high: int) -> list[int]:
        length = round(min(high, max(low, draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
        return [draw.randrange(10, vocabulary) for _ in range(length)]

    return [(ids(150, 0.9, 8, 700), ids(110, 0.8, 4, 320), ids(110, 0.8, 4, 320)) for _ in range(count)]


def make_model(folder: Path, shape: str) -> None:
    """A model of that shape with random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from prefloop.data.chat import CHATML

    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[shape], max_position_embeddings=4096, bos_token_id=None, eos_token_id=2, pad_token_id=3
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    words = {w: i for i, w in enumerate([*special, *(f"w{i}" for i in range(len(special), config.vocab_size))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    ).save_pretrained(folder)
