"""Tiny random models and their tokenizers, made in milliseconds and saved like real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prefloop.config import AdapterConfig, BackboneConfig
from prefloop.data.chat import CHATML
from prefloop.data.packing import Document
from prefloop.models.backbone import Backbone

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Please tell me how the weather will be tomorrow in the town by the river.",
    "A good answer is short, polite and true; a bad answer is long and wrong.",
    "What is the capital of the country where the longest river of the world begins?",
    "Thank you for the question! I think that the best way to learn is to try it again.",
    "user assistant system\n",
]
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    "<s>",
    "<end_of_turn>",
    "<eos>",
    "<|endoftext|>",
]
VOCABULARY = 400
TURN_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)

TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor"
    " %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n'"
    " }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{"
    " m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{"
    " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%"
    " endif %}"
)
"""Shows tools, calls and thoughts."""

TOKENIZERS: dict[str, dict[str, Any]] = {
    "chatml": {},
    "tools": {"chat_template": TOOLS},
    "no-template": {"chat_template": None},
    "pad-is-eos": {"pad_token": "<|im_end|>"},
    "bos": {"bos_token": "<s>"},
    "bos-in-template": {"bos_token": "<s>", "chat_template": "{{ bos_token }}" + CHATML},
    "bos-in-template-only": {
        "bos_token": "<s>",
        "chat_template": "{{ bos_token }}" + CHATML,
        "writes_bos": False,
    },
    "turn-end": {"eos_token": "<eos>", "chat_template": TURN_END},
    "turn-end-then-eos": {
        "eos_token": "<eos>",
        "chat_template": TURN_END + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    },
}
"""``bos``: the tokenizer puts a BOS before every text and the template writes none;
``bos-in-template``: both do.
"""

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    # Wide enough that random weights prefer some tokens to others and attention looks somewhere.
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-wide": {"head_dim": 64},  # vLLM's CPU build knows no smaller heads
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 12,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "mistral": {"sliding_window": 12},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
}


def tiny_tokenizer(variant: str = "chatml") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 tokens; ``variant`` is a key of ``TOKENIZERS``."""
    settings = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHATML,
        **TOKENIZERS[variant],
    }
    writes_bos = settings.pop("writes_bos", settings.get("bos_token") is not None)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if writes_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A",
            pair="<s> $A <s> $B",
            special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def tiny_model(
    folder: Path, kind: str = "llama", seed: int = 0, tokenizer: str = "chatml", **generation: Any
) -> Path:
    """Save a random model of ``kind`` (a key of ``KINDS``) and its tokenizer; ``generation`` goes
    to generation_config.json.
    """
    config = CONFIG_MAPPING[kind.partition("-")[0]](**{**_SHAPE, **KINDS[kind]})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for name, parameter in model.named_parameters():
            if (
                name.endswith("bias") or "norm" in name
            ):  # fresh ones are all alike and would hide a swap
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    tiny_tokenizer(tokenizer).save_pretrained(folder)
    return folder


def attention_of(kind: str) -> str:
    """SDPA wherever the model has it; Gemma 2's capped attention scores need the eager one."""
    return "eager" if kind == "gemma2" else "sdpa"


def load(
    folder: Path,
    kind: str = "llama",
    r: int = 4,
    dropout: float = 0.0,
    alpha: int = 8,
    **settings: Any,
) -> Backbone:
    """The backbone in ``folder`` in float32 (unless ``precision`` says otherwise) on the CPU."""
    defaults = {
        "precision": "fp32",
        "compute": "fp32",
        "attention": attention_of(kind),
        "max_length": 256,
    }
    config = BackboneConfig(
        model=f"tiny-{kind}",
        adapter=AdapterConfig(r=r, alpha=alpha, dropout=dropout),
        **{**defaults, **settings},
    )
    return Backbone.load(config, folder, torch.device("cpu"))


def plain(folder: Path, kind: str = "llama") -> PreTrainedModel:
    """The same model as transformers gives it, float32, no adapters: an independent opinion."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention_of(kind)
    ).eval()


def add_random_role(backbone: Backbone, role: str, seed: int = 1) -> None:
    """An adapter that changes what the model computes: a fresh one has B = 0 and does not."""
    backbone.add_role(role, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters(role):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def random_documents(shapes: list[tuple[int, list[int]]], seed: int = 0) -> list[Document]:
    """Documents of random ids, each given as (prompt length, response lengths); keys count
    through.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(len(SPECIAL), VOCABULARY, (length,), generator=generator).tolist()

    documents, key = [], 0
    for prompt, responses in shapes:
        documents.append(
            Document(
                ids(prompt), [ids(n) for n in responses], list(range(key, key + len(responses)))
            )
        )
        key += len(responses)
    return documents
