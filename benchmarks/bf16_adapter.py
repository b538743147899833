"""How much of an adapter's effect is left in bfloat16: beside its layers and merged into them, by
prefloop and by PEFT.

    python benchmarks/bf16_adapter.py runs/demo:sft                  # three minutes on two cores
    python benchmarks/bf16_adapter.py runs/demo:sft --responses 20

The adapter runs on its model's weights in bfloat16. Log-probs of responses (chosen ones of hh-rlhf,
unless ``--data`` names other pairs) under the adapter less those under the bare model are its
effect; the same in float32 arithmetic is the whole of it. The share is the slope of the one on the
other, with its 95 % bootstrap interval over responses. Merged weights are bfloat16 and run in
float32 arithmetic, so that their rounding alone shows.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefloop.artifacts.references import resolve
from prefloop.data.encode import Encoder
from prefloop.data.sources import load_comparisons
from prefloop.models.backbone import Backbone
from prefloop.runs.open import runtimes_of

Rows = list[tuple[list[int], list[int]]]
BF16, FP32 = torch.bfloat16, torch.float32


def rows_of(backbone: Backbone, path: Path, count: int) -> Rows:
    """Prompt and response ids of the chosen responses."""
    encoder, rows = Encoder(backbone.chat, backbone.config.max_length), []
    for record in load_comparisons(path, limit=count).records:
        prompt_ids = encoder.prompt(record.id, record.prompt)
        chosen = record.responses[record.votes[0].choice != 0]
        rows.append(
            (prompt_ids, encoder.response(record.id, record.prompt, chosen, len(prompt_ids)).ids)
        )
    return rows


@torch.no_grad()
def logps(model: Any, rows: Rows) -> list[Tensor]:
    """Log-probs of every response's tokens, float32 from the logits on."""
    out = []
    for prompt_ids, response_ids in rows:
        ids = torch.tensor([prompt_ids + response_ids], device=model.device)
        logits = model(ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float()
        out.append(logits.log_softmax(-1).gather(-1, ids[0, len(prompt_ids) :, None])[:, 0].cpu())
    return out


def ours(
    load: Callable[[str], Backbone], adapter: Path, compute: str, rows: Rows
) -> tuple[list[Tensor], list[Tensor]]:
    """Under the adapter and under the bare model."""
    backbone = load(compute)
    backbone.add_role("policy", start=adapter)
    found = []
    for role in ("policy", None):
        with backbone.role(role):
            found.append(logps(backbone.causal_lm, rows))
    return found[0], found[1]


def ways(
    load: Callable[[str], Backbone], adapter: Path, rows: Rows
) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Name, log-probs under the adapter, under the bare model in the same arithmetic; float32 comes
    first.
    """
    exact = ours(load, adapter, "fp32", rows)
    yield "float32", *exact
    yield "prefloop's layers in bfloat16", *ours(load, adapter, "bf16", rows)
    merging = load("bf16")
    merging.add_role("policy", start=adapter)
    merged = {name: weight.cpu() for name, weight in merging.merged_weights("policy")}
    folder, device = merging.folder, merging.device
    del merging

    def plain() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=BF16).to(device).eval()

    model = PeftModel.from_pretrained(plain(), str(adapter)).eval()
    with model.disable_adapter():
        bare = logps(model, rows)
    yield "PEFT's layers in bfloat16", logps(model, rows), bare
    yield "merged by PEFT", logps(model.merge_and_unload().to(FP32), rows), exact[1]
    model = plain()
    model.load_state_dict(merged, strict=False)
    yield "merged by prefloop", logps(model.to(FP32), rows), exact[1]


def share(
    shown: list[Tensor], whole: list[Tensor], resamples: int = 2000
) -> tuple[float, float, float]:
    """Slope of one effect on the other and its interval over responses."""
    both = torch.tensor([float((s * w).sum()) for s, w in zip(shown, whole, strict=True)])
    size = torch.tensor([float(w.square().sum()) for w in whole])
    drawn = torch.randint(
        len(whole), (resamples, len(whole)), generator=torch.Generator().manual_seed(0)
    )
    slopes = both[drawn].sum(1) / size[drawn].sum(1)
    low, high = slopes.quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(both.sum() / size.sum()), low, high


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "adapter", help="runs/demo:sft or the folder of an adapter of a method that PEFT knows"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/hh_helpful_test.jsonl.gz")
    )
    parser.add_argument("--responses", type=int, default=60)
    options = parser.parse_args()
    policy = resolve(options.adapter)
    ((_, runtime),) = runtimes_of([policy], None, None, "transformers", seed=0, output=None)
    config, folder = runtime.backbone.config, runtime.backbone.folder
    rows = rows_of(runtime.backbone, options.data, options.responses)
    runtime.release()

    def load(compute: Any) -> Backbone:
        return Backbone.load(dataclasses.replace(config, precision="bf16", compute=compute), folder)

    print(f"{len(rows)} responses, {sum(len(r) for _, r in rows)} tokens")
    print("| | share of the effect, % | mean gap to float32, nats a token |\n|---|---|---|")
    whole: list[Tensor] = []
    under: list[Tensor] = []
    for name, with_adapter, bare in ways(load, policy.folder, rows):
        effect = [a - b for a, b in zip(with_adapter, bare, strict=True)]
        whole, under = whole or effect, under or with_adapter
        found = [100 * x for x in share(effect, whole)]
        gap = float((torch.cat(with_adapter) - torch.cat(under)).abs().mean())
        print(
            f"| {name} | {found[0]:.1f} [{found[1]:.1f}, {found[2]:.1f}] | {gap:.4f} |", flush=True
        )


if __name__ == "__main__":
    main()
