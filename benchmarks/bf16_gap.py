"""How far bfloat16 alone moves the log-probs of a model with random weights: the floor of a
sampler-trainer gap on such models.

    python benchmarks/bf16_gap.py

Narrow models with the depth of the 7B and the 70B shape, and weights scaled so that a linear layer
amplifies as much as theirs do (standard deviation 0.02 times the root of the width: 1.2 and 1.81).
The same weights in float32 and in bfloat16; two different bfloat16 implementations differ by about
√2 of that.
"""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def gap(layers: int, gain: float, width: int = 512, tokens: int = 192) -> float:
    """Mean absolute difference in nats a token."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=4096,
        tie_word_embeddings=False,
        initializer_range=gain / width**0.5,
    )
    model = Qwen2ForCausalLM(config).bfloat16().float().eval()
    ids = torch.randint(0, config.vocab_size, (2, tokens))
    found = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            logits = model.to(dtype)(ids).logits[:, :-1].float()
            found.append(logits.log_softmax(-1).gather(-1, ids[:, 1:, None]))
    return float((found[0] - found[1]).abs().mean())


if __name__ == "__main__":
    for name, layers, gain in (("7B shape", 28, 1.2), ("70B shape", 80, 1.81)):
        alone = gap(layers, gain)
        print(
            f"{name}: {alone:.3f} nats a token against float32, about {alone * 2**0.5:.3f} between"
            " two implementations",
            flush=True,
        )
