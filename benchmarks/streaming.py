"""Peak memory while N synthetic pairs stream from a file to packs: validation, tokens on disk, the
packs of an epoch.

    # 1,000, 10,000 and 100,000 pairs, each in a process of its own
    python benchmarks/streaming.py
    python benchmarks/streaming.py --pairs 100000 --work /some/disk
    # 10,000 and 1,000,000 rows of parquet through copy_records and prefloop check
    python benchmarks/streaming.py --tables

Lengths are shaped like hh-rlhf (prompts of 110 words and responses of 80 on average); words are
drawn from a small vocabulary and tokenized by a tokenizer of whole words, so that a run is about
the toolkit and not about the tokenizer. No model is loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_pairs(path: Path, count: int) -> None:
    """Pairs in the prompt-chosen-rejected layout, one a line."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(2000)]

    def text(mean: float) -> str:
        return " ".join(
            draw.choices(
                words, k=max(2, min(600, round(draw.lognormvariate(math.log(mean) - 0.3, 0.8))))
            )
        )

    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {"prompt": f"w{i % 2000} {text(110)}", "chosen": text(80), "rejected": text(80)}
            file.write(json.dumps(row) + "\n")


def write_table(path: Path, count: int) -> None:
    """The same kind of pairs as parquet, 10,000 a row group; texts are drawn from a pool and told
    apart by a number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    pool = [
        " ".join(
            draw.choices(
                words, k=max(2, min(600, round(draw.lognormvariate(math.log(80) - 0.3, 0.8))))
            )
        )
        for _ in range(5000)
    ]
    names = ("prompt", "chosen", "rejected")
    with pq.ParquetWriter(path, pa.schema({name: pa.string() for name in names})) as writer:
        for start in range(0, count, 10_000):
            rows = range(start, min(count, start + 10_000))
            writer.write_table(
                pa.table(
                    {name: [f"{name} {i} {draw.choice(pool)}" for i in rows] for name in names}
                )
            )


def read_table(folder: Path, count: int, what: str) -> dict[str, float | str]:
    """What the label stage (``copy``) or ``prefloop check`` (``check``) does with a table of
    pairs.
    """
    from prefloop.cli import _main
    from prefloop.data.sources import copy_records
    from prefloop.records import Comparison

    source, before = folder / "pairs.parquet", peak_mib()
    started = time.monotonic()
    if what == "copy":
        copy_records(Comparison, source, folder / "comparisons.jsonl")
    else:
        _main(["check", str(source)])
    seconds = time.monotonic() - started
    size = source.stat().st_size / 2**20
    return {
        "rows": count,
        "what": what,
        "file_mib": size,
        "before_mib": before,
        "peak_mib": peak_mib(),
        "seconds": seconds,
    }


def peak_mib() -> float:
    """The most memory that this process had, mapped files included; getrusage would count what its
    parent had before the start.
    """
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        / 1024
    )


def private_mib() -> float:
    """Memory that is this process's own: without the pages of mapped files, which the system takes
    back when it wants to.
    """
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])
        / 1024
    )


def stream(folder: Path, count: int) -> dict[str, float]:
    """What the label and training stages do with a file of pairs, without a model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from prefloop.data.chat import CHATML, ChatFormat
    from prefloop.data.encode import Encoder
    from prefloop.data.groups import write_groups
    from prefloop.data.packing import packs
    from prefloop.data.sources import copy_records
    from prefloop.labeling.aggregation import aggregation
    from prefloop.records import Comparison
    from prefloop.training.batches import ahead, epochs_of_groups

    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<|pad|>", "user", "assistant"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(2000))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHATML,
    )
    started = time.monotonic()
    copy_records(Comparison, folder / "pairs.jsonl", folder / "comparisons.jsonl")
    validated, private = time.monotonic(), [private_mib()]
    encoder = Encoder(ChatFormat.load(fast), 1024)
    groups = write_groups(
        folder / "comparisons.jsonl", folder / "groups.arrow", encoder, aggregation("share")
    )
    written = time.monotonic()
    private.append(private_mib())
    tokens = steps = 0
    for ready in ahead(
        lambda indices: packs([groups[i].document for i in indices], 4096),
        epochs_of_groups(len(groups), groups.pairs, 32, 1.0, 0),
    ):
        tokens += sum(len(pack.tokens_N) for pack in ready)
        steps += 1
        if steps % 100 == 0:
            private.append(private_mib())
    return {
        "pairs": count,
        "file_mib": (folder / "pairs.jsonl").stat().st_size / 2**20,
        "private_mib": max(private),
        "peak_mib": peak_mib(),
        "validate_s": validated - started,
        "tokenize_s": written - validated,
        "packs_s": time.monotonic() - written,
        "steps": steps,
        "million_tokens": tokens / 1e6,
    }


def tables(counts: list[int], work: Path | None) -> None:
    """Print one line for each number of rows and each reader."""
    for count in counts:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            write_table(Path(folder) / "pairs.parquet", count)
            for what in ("copy", "check"):
                call = [
                    sys.executable,
                    __file__,
                    "--one",
                    str(count),
                    "--read",
                    what,
                    "--work",
                    folder,
                ]
                done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
                r = json.loads(
                    next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[
                        7:
                    ]
                )
                print(
                    f"{r['rows']:9,} rows  {r['file_mib']:7.1f} MiB of parquet  {r['what']:5} "
                    f" {r['rows'] / r['seconds']:7,.0f} rows/s  peak {r['peak_mib']:4.0f} MiB"
                    f" ({r['before_mib']:.0f} before the first row)",
                    flush=True,
                )


def main() -> None:
    """Print one line for each number of pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--work", type=Path, help="where the files go; default: a temporary folder")
    parser.add_argument(
        "--tables",
        type=int,
        nargs="*",
        help="rows of parquet to read instead; 10,000 and 1,000,000 unless given",
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--read", choices=("copy", "check"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one and options.read:
        print(
            "RESULT " + json.dumps(read_table(options.work, options.one, options.read)), flush=True
        )
        return
    if options.one:
        print("RESULT " + json.dumps(stream(options.work, options.one)), flush=True)
        return
    if options.tables is not None:
        tables(options.tables or [10_000, 1_000_000], options.work)
        return
    for count in options.pairs:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            write_pairs(Path(folder) / "pairs.jsonl", count)
            call = [sys.executable, __file__, "--one", str(count), "--work", folder]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        r = json.loads(
            next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:]
        )
        print(
            f"{r['pairs']:8,} pairs  {r['file_mib']:7.1f} MiB of text  {r['million_tokens']:6.1f} M"
            f" tokens  {r['steps']:5} steps  own memory at most {r['private_mib']:4.0f} MiB (with"
            f" mapped files {r['peak_mib']:.0f})  validated in {r['validate_s']:.0f} s, tokenized"
            f" in {r['tokenize_s']:.0f} s, packed in {r['packs_s']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
