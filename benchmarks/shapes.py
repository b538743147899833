"""Models of a shape with random weights, and rows with lengths like hh-rlhf's: what the GPU
benchmarks run on.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from prefloop.planning.shapes import SHAPES


def rows(count: int, vocabulary: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected ids; log-normal lengths: prompts mean 150 σ .9 in 8-700,
    responses mean 110 σ .8 in 4-320.
    """
    draw = random.Random(0)

    def ids(mean: float, sigma: float, low: int, high: int) -> list[int]:
        length = round(
            min(high, max(low, draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))
        )
        return [draw.randrange(10, vocabulary) for _ in range(length)]

    return [
        (ids(150, 0.9, 8, 700), ids(110, 0.8, 4, 320), ids(110, 0.8, 4, 320)) for _ in range(count)
    ]


def make_model(folder: Path, shape: str) -> None:
    """A model of that shape with random weights and a tokenizer of whole words."""
    import torch
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2ForCausalLM(config_of(shape))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    make_tokenizer(folder, SHAPES[shape]["vocab_size"])


def make_quantized(folder: Path, shape: str) -> None:
    """The same in NF4, made and written a layer at a time: the bfloat16 model never exists whole,
    on the device or on disk.
    """
    import torch
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig, Qwen2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = config_of(shape)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Qwen2ForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    generator = torch.Generator(device).manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split(".")[2] if ".layers." in name else "rest", []).append(name)
    where: dict[str, str] = {}
    size = 0
    for number, names in enumerate(parts.values(), 1):
        tensors: dict[str, Any] = {}
        for name in names:
            full = torch.empty(shapes[name], dtype=torch.bfloat16, device=device)
            full.fill_(1) if "norm" in name else full.zero_() if name.endswith(
                "bias"
            ) else full.normal_(std=0.02, generator=generator)
            if "_proj.weight" in name:
                packed, state = quantize_4bit(full, compress_statistics=True, quant_type="nf4")
                tensors[name] = packed.cpu()
                tensors |= {
                    f"{name}.{key}": t.cpu() for key, t in state.as_dict(packed=True).items()
                }
            else:
                tensors[name] = full.cpu()
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        size += sum(t.numel() * t.itemsize for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ).to_dict()
    config.architectures = ["Qwen2ForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    make_tokenizer(folder, SHAPES[shape]["vocab_size"])


def config_of(shape: str) -> Any:
    """transformers' configuration of the shape."""
    from transformers import Qwen2Config

    return Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=3,
    )


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of whole words, w4, w5 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from prefloop.data.chat import CHATML

    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    words = {
        w: i for i, w in enumerate([*special, *(f"w{i}" for i in range(len(special), vocabulary))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHATML,
    ).save_pretrained(folder)
