"""The CPU figures of docs/benchmarks.md: matrix products, training passes and vLLM on SmolLM2-135M.

    .venv/bin/python benchmarks/cpu.py matmul
    .venv/bin/python benchmarks/cpu.py train --compute fp32 --malloc keep
    .venv/bin/python benchmarks/cpu.py vllm --dtype float32

Run one at a time on an idle machine: beside another load the figures are off by a large factor.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def matmul() -> None:
    """GFLOP/s of one linear layer's product in three precisions."""
    import torch

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a, b = torch.randn(1024, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype)
        for _ in range(20):
            torch.nn.functional.linear(a, b)
        started, count = time.monotonic(), 0
        while time.monotonic() - started < 2:
            torch.nn.functional.linear(a, b)
            count += 1
        print(
            f"{dtype}: {count * 2 * 1024 * 576 * 1536 / (time.monotonic() - started) / 1e9:.0f}"
            " GFLOP/s"
        )


def train(compute: str, precision: str, malloc: str) -> None:
    """Tokens a second of forward plus backward, and of scoring, on packs of four 48-token responses
    to a 25-token prompt.
    """
    from prefloop.config import BackboneConfig
    from prefloop.data.packing import Document, packs
    from prefloop.models import backbone as module
    from prefloop.models.forward import hidden_N_H, response_logps_R
    from prefloop.models.lookup import resolve

    if malloc == "default":
        module.keep_freed_memory = lambda: None
    rng = random.Random(0)

    def document(i: int) -> Document:
        def ids(n: int) -> list[int]:
            return [rng.randrange(100, 40_000) for _ in range(n)]

        return Document(ids(25), [ids(48) for _ in range(4)], list(range(4 * i, 4 * i + 4)))

    config = BackboneConfig(
        model=MODEL, precision=precision, compute=compute, chat_template="chatml"
    )
    backbone = module.Backbone.load(config, resolve(MODEL, Path("runs/.store/models")))
    backbone.add_role("policy")
    todo = packs([document(i) for i in range(8)], 512)
    for name in ("warm-up", "measured"):
        started = time.monotonic()
        for pack in todo:
            with backbone.role("policy", train=True):
                response_logps_R(backbone, hidden_N_H(backbone, pack), pack, 0.7).mean().backward()
        trained = time.monotonic()
        for pack in todo:
            with backbone.role("policy"):
                response_logps_R(backbone, hidden_N_H(backbone, pack), pack, 0.7)
        tokens = sum(len(pack.tokens_N) for pack in todo)
        seconds = (trained - started, time.monotonic() - trained)
        print(
            f"{name}: {precision}, {compute}: train {tokens / seconds[0]:.0f} tok/s, score"
            f" {tokens / seconds[1]:.0f} tok/s"
        )


def vllm(dtype: str) -> None:
    """Tokens a second of 128 responses in flight, and seconds of a hand-over of merged weights."""
    from prefloop.config import BackboneConfig, GenerationConfig
    from prefloop.models.backbone import Backbone
    from prefloop.models.lookup import resolve
    from prefloop.records import Message
    from prefloop.rollouts.vllm import VLLMEngine

    compute = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    config = BackboneConfig(model=MODEL, compute=compute, chat_template="chatml", max_length=512)
    backbone = Backbone.load(config, resolve(MODEL, Path("runs/.store/models")))
    backbone.add_role("policy")
    started = time.monotonic()
    engine = VLLMEngine(backbone, GenerationConfig(max_new_tokens=64))
    print(f"start {time.monotonic() - started:.1f} s")
    questions = [
        "How do I keep bread fresh?",
        "Why is the sky blue?",
        "What is a noun?",
        "Give me a tip for sleeping better.",
    ]
    prompts = [backbone.chat.prompt_ids([Message("user", q)]) for q in questions] * 16
    for _ in range(3):
        started = time.monotonic()
        engine.load_policy("policy")
        handed = time.monotonic()
        tokens = sum(len(r.token_ids) for r in engine.generate(prompts, 2, seed=5))
        print(
            f"{dtype}: hand-over {handed - started:.2f} s,"
            f" {tokens / (time.monotonic() - handed):.0f} tok/s"
        )
    engine.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["matmul", "train", "vllm"])
    parser.add_argument(
        "--compute",
        choices=["fp32", "bf16"],
        default="fp32",
        help="arithmetic of the training pass",
    )
    parser.add_argument(
        "--precision", choices=["nf4", "bf16", "fp32"], default="nf4", help="storage of the weights"
    )
    parser.add_argument(
        "--malloc", choices=["keep", "default"], default="keep", help="reuse freed memory or not"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="vLLM's arithmetic"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.what == "matmul":
        matmul()
    elif arguments.what == "train":
        train(arguments.compute, arguments.precision, arguments.malloc)
    else:
        vllm(arguments.dtype)


if __name__ == "__main__":
    main()
