"""Preference training on a GPU, prefloop and TRL side by side: real tokens a second and peak
memory.

    # all kinds, both sides, one table
    python benchmarks/preference_throughput.py
    python benchmarks/preference_throughput.py --kinds dpo --sides ours --attention sdpa

A 7B-shaped Qwen2 with random weights in NF4, LoRA r = 16 on every linear layer, 8 pairs an
optimizer step, gradient checkpointing, lengths shaped like hh-rlhf. Real tokens count the prompt
once for each response, as TRL's own counter does, and no padding. Each side runs in a process of
its own, on the same rows; the first steps are not counted. TRL gets its own defaults but for the
settings above.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import SHAPES, make_model, rows

KINDS = ("dpo", "dpo-cached", "reward", "kto")
WARM_UP = 4


def real_tokens(batch: list[tuple[list[int], list[int], list[int]]]) -> int:
    return sum(2 * len(p) + len(c) + len(r) for p, c, r in batch)


def ours(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """prefloop's stages' own step functions on the rows."""
    import torch

    from prefloop.config import AdapterConfig, BackboneConfig, OptimConfig, PreferenceConfig
    from prefloop.data.encode import PreferenceGroup, ThumbGroup
    from prefloop.data.packing import Document, Pack, packs
    from prefloop.models.backbone import Backbone
    from prefloop.models.forward import hidden_N_H
    from prefloop.models.heads import ScalarHead
    from prefloop.objectives.reward import bradley_terry
    from prefloop.training.batches import ahead
    from prefloop.training.dpo import PAIR_LOSSES
    from prefloop.training.kto import Reads, estimate, kto_loss, reads
    from prefloop.training.loop import Loop
    from prefloop.training.pair_batch import pairs_of
    from prefloop.training.policy import POLICY, REFERENCE, policy_B, reference_B

    config = BackboneConfig(
        model=str(folder),
        precision=options.precision,
        attention=options.attention,
        gradient_checkpointing=options.checkpointing,
        pack_tokens=options.pack_tokens,
        max_length=1024,
        chat_template="chatml",
        adapter=AdapterConfig(r=16, alpha=32),
    )
    backbone = Backbone.load(config, folder)

    data = rows(options.steps * options.batch, SHAPES[options.shape]["vocab_size"])
    groups = [
        PreferenceGroup(Document(p, [c, r], [2 * i, 2 * i + 1]), [(0, 1, 1.0, 1.0)])
        for i, (p, c, r) in enumerate(data)
    ]
    by_key = {key: g for g in groups for key in g.document.keys}
    up = {key: key % 2 == 0 for key in by_key}
    known: Any = None
    backbone.add_role(POLICY)
    backbone.add_role(REFERENCE, frozen=True)
    settings = PreferenceConfig()
    head = ScalarHead(backbone.hidden_size, "normal").to(backbone.device)
    parameters = {f"adapter/{i}": p for i, p in enumerate(backbone.parameters(POLICY))}
    if kind == "reward":
        parameters |= {f"head/{n}": p for n, p in head.named_parameters()}
    loop = Loop(parameters, OptimConfig(learning_rate=1e-5), options.steps, folder)
    cached = None
    if kind == "dpo-cached":
        found = {}
        for pack in packs([g.document for g in groups], options.pack_tokens):
            found.update(
                zip(
                    pack.keys,
                    reference_B(backbone, pack.to(backbone.device), 1.0).tolist(),
                    strict=True,
                )
            )
        cached = torch.tensor([found[k] for k in range(len(found))])

    def loss_of(pack: Pack) -> Any:
        if kind == "kto":
            return kto_loss(backbone, pack, up, known, 0.1, (1.0, 1.0), 1.0)[0].sum()
        if kind == "reward":
            with backbone.role(POLICY, train=True, dropout=True):
                score_B = head(hidden_N_H(backbone, pack).index_select(0, pack.last_B))
            p = pairs_of(pack, by_key, score_B, 0.0)
            return bradley_terry(p.margin).sum()
        reference = reference_B(backbone, pack, 1.0, cached)
        p = pairs_of(pack, by_key, policy_B(backbone, pack, 1.0), reference)
        return PAIR_LOSSES["dpo"].loss(p, settings).sum()

    device_sync = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)

    def prepare(step: int) -> tuple[list[PreferenceGroup], Reads | None, list[Pack]]:
        batch = groups[step * options.batch : (step + 1) * options.batch]
        first = (
            reads([ThumbGroup(g.document, [True, False]) for g in batch], backbone.scoring_tokens)
            if kind == "kto"
            else None
        )
        return batch, first, packs([g.document for g in batch], options.pack_tokens)

    coming = ahead(prepare, range(options.steps))
    started, tokens, losses = 0.0, 0, []
    for step in range(options.steps):
        if step == min(WARM_UP, options.steps - 1):
            device_sync()
            if options.profile:
                profiler = torch.profiler.profile()
                profiler.__enter__()
            started, tokens = time.monotonic(), 0
        batch, first, ready = next(coming)
        if first is not None:
            known = estimate(backbone, first, 1.0)
        items = len(batch) * (2 if kind == "kto" else 1)
        found = loop.update(ready, loss_of, items)
        losses.append(found["loss"])
        tokens += real_tokens(data[step * options.batch : (step + 1) * options.batch])
    device_sync()
    seconds = time.monotonic() - started
    if options.profile:
        profiler.__exit__(None, None, None)
        print(
            profiler.key_averages().table(
                sort_by="cuda_time_total" if torch.cuda.is_available() else "cpu_time_total",
                row_limit=45,
                max_name_column_width=70,
            )
        )
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "loss_last": losses[-1],
        "kernel": backbone.kernel,
    }  # type: ignore[dict-item]


def trl(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer on the same rows."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )

    if (gpu := torch.cuda.is_available()) and options.trl_cudnn == "off":
        torch.backends.cuda.enable_cudnn_sdp(False)

    class Timer(TrainerCallback):
        started, step = 0.0, 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == min(WARM_UP, options.steps - 1):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.started, self.step = time.monotonic(), state.global_step

    quantization = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        )
        if options.precision == "nf4"
        else None
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder
    )  # by its class: "qwen2" would split words its own way
    data = rows(options.steps * options.batch, SHAPES[options.shape]["vocab_size"])

    def text(ids: list[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    common: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch,
        max_steps=options.steps,
        learning_rate=1e-5,
        gradient_checkpointing=True,
        bf16=gpu,
        use_cpu=not gpu,
        report_to="none",
        save_strategy="no",
        train_sampling_strategy="sequential",
        logging_steps=1,
        disable_tqdm=True,
        max_length=1024,
    )
    dtype = torch.bfloat16 if gpu else torch.float32
    load = dict(quantization_config=quantization, dtype=dtype, device_map={"": 0} if gpu else None)
    lora = dict(r=16, lora_alpha=32, target_modules="all-linear")
    if kind == "reward":
        from trl import RewardConfig, RewardTrainer

        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **load)
        table = [{"chosen": text(p + c[:-1]), "rejected": text(p + r[:-1])} for p, c, r in data]
        trainer: Any = RewardTrainer(
            model,
            args=RewardConfig(**common),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(table),
            peft_config=LoraConfig(task_type="SEQ_CLS", **lora),
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **load)
        peft = LoraConfig(task_type="CAUSAL_LM", **lora)
        if kind == "kto":
            from trl import KTOConfig, KTOTrainer

            common["per_device_train_batch_size"] = 2 * options.batch
            table = [
                {"prompt": text(p), "completion": " " + text(x[:-1]), "label": good}
                for p, c, r in data
                for x, good in ((c, True), (r, False))
            ]
            trainer = KTOTrainer(
                model,
                args=KTOConfig(**common),
                processing_class=tokenizer,
                train_dataset=Dataset.from_list(table),
                peft_config=peft,
            )
        else:
            from trl import DPOConfig, DPOTrainer

            table = [
                {"prompt": text(p), "chosen": " " + text(c[:-1]), "rejected": " " + text(r[:-1])}
                for p, c, r in data
            ]
            arguments = DPOConfig(precompute_ref_log_probs=kind == "dpo-cached", **common)
            trainer = DPOTrainer(
                model,
                args=arguments,
                processing_class=tokenizer,
                train_dataset=Dataset.from_list(table),
                peft_config=peft,
            )
    # The same rows, token for token: a tokenizer that drops words would make this side look fast.
    columns = [
        c
        for c in ("chosen_ids", "rejected_ids", "completion_ids")
        if c in trainer.train_dataset.column_names
    ]
    prompts = (
        0 if kind == "reward" else sum(map(len, trainer.train_dataset["prompt_ids"])) * len(columns)
    )
    held = prompts + sum(len(ids) for c in columns for ids in trainer.train_dataset[c])
    assert held == real_tokens(data), f"TRL holds {held} tokens of {real_tokens(data)}"
    timer = Timer()
    trainer.add_callback(timer)
    trainer.train()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - timer.started
    tokens = real_tokens(data[timer.step * options.batch :])
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "loss_last": trainer.state.log_history[-2].get("loss", float("nan")),
    }


def main() -> None:
    """Run every asked combination in a process of its own and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--sides", nargs="+", default=["ours", "trl"], choices=["ours", "trl"])
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument(
        "--model", type=Path, help="folder of the random model; made when it is not there"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs an optimizer step")
    parser.add_argument("--pack-tokens", type=int, default=4096)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--precision", default="nf4")
    parser.add_argument(
        "--checkpointing",
        default="block",
        choices=["none", "block"],
        help="ours; TRL recomputes blocks",
    )
    parser.add_argument(
        "--trl-cudnn",
        default="on",
        choices=["on", "off"],
        help="cuDNN's attention for TRL; torch's default is on, prefloop switches it off",
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for noisy in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(noisy, "1")
    folder = options.model or Path(tempfile.gettempdir()) / f"prefloop-{options.shape}"
    if options.one:
        import torch

        side, kind = options.one
        found = (ours if side == "ours" else trl)(kind, folder, options)
        peak = (
            torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
        )
        print("RESULT " + json.dumps({**found, "peak_gib": peak}), flush=True)
        return
    if not (folder / "config.json").is_file():
        make_model(folder, options.shape)
    import torch

    versions = {
        p: importlib.metadata.version(p)
        for p in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    }
    print(
        torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", versions, flush=True
    )
    results: dict[str, dict[str, Any]] = {}
    for kind in options.kinds:
        for side in options.sides:
            call = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--model",
                str(folder),
                "--one",
                side,
                kind,
            ]
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            lines = done.stdout.splitlines()
            result = next((line for line in lines if line.startswith("RESULT ")), None)
            if result is None or options.profile:
                print("\n".join(lines[-70:]), flush=True)
            if result is None:
                print(
                    f"{kind:11} {side:5} failed with exit code"
                    f" {done.returncode}\n{done.stderr[-2000:]}",
                    flush=True,
                )
                continue
            r = results.setdefault(kind, {})[side] = json.loads(result.removeprefix("RESULT "))
            print(
                f"{kind:11} {side:5} {r['tokens_per_second']:9.0f} real tok/s  {r['peak_gib']:6.2f}"
                f" GiB peak  last loss {r['loss_last']:.4f}  {r.get('kernel', '')}",
                flush=True,
            )
        if len(results.get(kind, {})) == 2:
            a, b = results[kind]["ours"], results[kind]["trl"]
            print(
                f"{kind:11} ratio {a['tokens_per_second'] / b['tokens_per_second']:8.2f} x speed   "
                f"    {a['peak_gib'] / b['peak_gib']:6.2f} x memory",
                flush=True,
            )


if __name__ == "__main__":
    main()
