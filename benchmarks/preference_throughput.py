"""Training on a GPU, prefloop and TRL side by side: real tokens a second and peak memory.

    # all kinds, both sides, one table
    python benchmarks/preference_throughput.py
    python benchmarks/preference_throughput.py --kinds dpo --sides ours --attention sdpa
    python benchmarks/preference_throughput.py --kinds sft --sft-rows 64

A 7B-shaped Qwen2 with random weights in NF4, LoRA r = 16 on every linear layer, 8 pairs an
optimizer step (SFT: ``--sft-rows`` demonstrations), gradient checkpointing, lengths shaped like
hh-rlhf. Real tokens count the prompt once for each response, as TRL's own counter does, and no
padding. Each side runs in a process of its own, on the same rows; the first steps are not counted.
TRL gets its own defaults but for the settings above; SFT runs twice there: ``trl`` packs rows (bfd,
which is free of padding, with flash attention where it is installed), as many tokens a pass as
ours, and ``trl-padded`` pads batches of 8.
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

KINDS = ("sft", "dpo", "dpo-cached", "reward", "kto")
SIDES = ("ours", "trl", "trl-padded")
WARM_UP = 4
PADDED = 8
"""Rows of a padded batch of TRL's SFT."""
Row = tuple[list[int], ...]
"""A prompt and its responses, as token ids."""


def real_tokens(batch: list[Row]) -> int:
    """Each response with its prompt."""
    return sum(len(row[0]) + len(response) for row in batch for response in row[1:])


def data_of(kind: str, options: argparse.Namespace) -> tuple[list[Row], int]:
    """All rows, and how many an optimizer step has: prompt and answer, or prompt and a pair."""
    batch = options.sft_rows if kind == "sft" else options.batch
    found = rows(options.steps * batch, SHAPES[options.shape]["vocab_size"])
    return ([row[:2] for row in found] if kind == "sft" else list(found)), batch


def ours(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """prefloop's stages' own step functions on the rows."""
    import torch

    from prefloop.config import (
        AdapterConfig,
        BackboneConfig,
        OptimConfig,
        PreferenceConfig,
        RewardConfig,
    )
    from prefloop.data.encode import PreferenceGroup, ThumbGroup
    from prefloop.data.packing import Document, packs
    from prefloop.models.backbone import Backbone
    from prefloop.models.heads import ScalarHead
    from prefloop.pipeline.stages.kto import ThumbStep
    from prefloop.pipeline.stages.preference import PairStep
    from prefloop.pipeline.stages.reward import VoteStep
    from prefloop.pipeline.stages.sft import ROLE, AnswerStep
    from prefloop.training.batches import ahead
    from prefloop.training.dpo import PAIR_LOSSES
    from prefloop.training.loop import Loop
    from prefloop.training.policy import POLICY, REFERENCE, reference_B
    from prefloop.training.steps import TrainingStep

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

    data, size = data_of(kind, options)
    documents = [
        Document(row[0], row[1:], range(i * (len(row) - 1), (i + 1) * (len(row) - 1)))
        for i, row in enumerate(data)
    ]
    role = ROLE if kind == "sft" else POLICY
    backbone.add_role(role)
    if kind not in ("sft", "reward"):
        backbone.add_role(REFERENCE, frozen=True)
    head = ScalarHead(backbone.hidden_size, "normal").to(backbone.device)
    parameters = {f"adapter/{n}": p for n, p in backbone.named_parameters(role).items()}
    if kind == "reward":
        parameters |= {f"head/{n}": p for n, p in head.named_parameters()}
    loop = Loop(parameters, OptimConfig(learning_rate=1e-5), options.steps, folder)
    cached = None
    if kind == "dpo-cached":
        cached = torch.zeros(2 * len(data))
        for pack in packs(documents, options.pack_tokens):
            cached[list(pack.keys)] = reference_B(backbone, pack.to(backbone.device), 1.0).cpu()

    def prepare(number: int) -> TrainingStep:
        batch = documents[number * size : (number + 1) * size]
        if kind == "sft":
            return AnswerStep(backbone, batch)
        if kind == "kto":
            thumbs = [ThumbGroup(d, [True, False]) for d in batch]
            return ThumbStep(backbone, 0.1, (1.0, 1.0), 1.0, thumbs)
        groups = [PreferenceGroup(d, [(0, 1, 1.0, 1.0)]) for d in batch]
        if kind == "reward":
            return VoteStep(backbone, role, head, RewardConfig(), groups)
        return PairStep(backbone, PAIR_LOSSES["dpo"], PreferenceConfig(), 1.0, groups, cached)

    device_sync = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    coming = ahead(prepare, range(options.steps))
    started, tokens, losses = 0.0, 0, []
    for step in range(options.steps):
        if step == min(WARM_UP, options.steps - 1):
            device_sync()
            if options.profile:
                profiler = torch.profiler.profile()
                profiler.__enter__()
            started, tokens = time.monotonic(), 0
        made = next(coming)
        losses.append(loop.update(made.packs, made.loss, made.items)["loss"])
        tokens += real_tokens(data[step * size : (step + 1) * size])
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


def trl(
    kind: str, folder: Path, options: argparse.Namespace, padded: bool = False
) -> dict[str, float]:
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
    from transformers.utils import is_flash_attn_2_available

    if (gpu := torch.cuda.is_available()) and options.trl_cudnn == "off":
        torch.backends.cuda.enable_cudnn_sdp(False)

    class Timer(TrainerCallback):
        started, step = 0.0, 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == min(WARM_UP, state.max_steps - 1):
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
    data, size = data_of(kind, options)

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
        flash = kind == "sft" and not padded and is_flash_attn_2_available()
        attention = "flash_attention_2" if flash else "sdpa"
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, **load)
        peft = LoraConfig(task_type="CAUSAL_LM", **lora)
        if kind == "sft":
            from trl import SFTConfig, SFTTrainer

            at_once = PADDED if padded else max(1, options.pack_tokens // options.trl_pack)
            passes = size / PADDED if padded else real_tokens(data[:size]) / options.pack_tokens
            common |= dict(
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=max(1, round(passes)),
                max_steps=-1,
                num_train_epochs=1,
                completion_only_loss=True,
                packing=not padded,
                max_length=1024 if padded else options.trl_pack,
            )
            table = [
                {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)}
                for p, c in data
            ]
            trainer = SFTTrainer(
                model,
                args=SFTConfig(**common),
                processing_class=tokenizer,
                train_dataset=Dataset.from_list(table),
                peft_config=peft,
            )
        elif kind == "kto":
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
    made = trainer.train_dataset
    columns = [
        c
        for c in ("input_ids", "chosen_ids", "rejected_ids", "completion_ids")
        if c in made.column_names
    ]
    prompts = (
        sum(map(len, made["prompt_ids"])) * len(columns) if kind not in ("sft", "reward") else 0
    )
    held = prompts + sum(len(ids) for c in columns for ids in made[c])
    assert held == real_tokens(data), f"TRL holds {held} tokens of {real_tokens(data)}"
    timer = Timer()
    trainer.add_callback(timer)
    trainer.train()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.monotonic() - timer.started
    tokens = real_tokens(data[timer.step * size :])
    if kind == "sft":  # packed rows are others than ours
        args = trainer.args
        first = timer.step * args.per_device_train_batch_size * args.gradient_accumulation_steps
        tokens = sum(len(ids) for ids in made["input_ids"][first:])
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "loss_last": trainer.state.log_history[-2].get("loss", float("nan")),
        "kernel": trainer.model.config._attn_implementation,
    }  # type: ignore[dict-item]


def main() -> None:
    """Run every asked combination in a process of its own and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument(
        "--model", type=Path, help="folder of the random model; made when it is not there"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs an optimizer step")
    parser.add_argument(
        "--sft-rows", type=int, default=64, help="demonstrations an optimizer step of SFT"
    )
    parser.add_argument("--pack-tokens", type=int, default=4096)
    parser.add_argument(
        "--trl-pack",
        type=int,
        default=1024,
        help="tokens of TRL's packed rows; so many rows a pass that they make --pack-tokens",
    )
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
        found = (
            ours(kind, folder, options)
            if side == "ours"
            else trl(kind, folder, options, padded=side == "trl-padded")
        )
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
            if side == "trl-padded" and kind != "sft":
                continue
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
                    f"{kind:11} {side:10} failed with exit code"
                    f" {done.returncode}\n{done.stderr[-2000:]}",
                    flush=True,
                )
                continue
            r = results.setdefault(kind, {})[side] = json.loads(result.removeprefix("RESULT "))
            print(
                f"{kind:11} {side:10} {r['tokens_per_second']:9.0f} real tok/s"
                f"  {r['peak_gib']:6.2f} GiB peak  last loss {r['loss_last']:.4f}"
                f"  {r.get('kernel', '')}",
                flush=True,
            )
        found = dict(results.get(kind, {}))
        a = found.pop("ours", None)
        for side, b in found.items() if a else ():
            print(
                f"{kind:11} ours to {side:10}"
                f" {a['tokens_per_second'] / b['tokens_per_second']:8.2f} x speed"
                f"  {a['peak_gib'] / b['peak_gib']:6.2f} x memory",
                flush=True,
            )


if __name__ == "__main__":
    main()
