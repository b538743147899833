"""Model and rows of ``adapters.py``: the slices of SFT, DPO and the test, and a tiny model and made
rows for ``--tiny``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "examples" / "adapters.yaml"


def model_folder(options: argparse.Namespace) -> Path:
    """The model, unpacked once for all methods where it has to be."""
    from prefloop.config.load import load_config
    from prefloop.models.lookup import resolve

    return resolve(options.model or load_config(CONFIG).backbone.model, options.output / "models")


def write_slices(options: argparse.Namespace) -> None:
    """The rows of SFT, of DPO and of the test, once for all methods; prompts of more than half the
    context are left out.
    """
    from prefloop.config.load import load_config
    from prefloop.data.sources import load_comparisons, write_jsonl

    folder = options.output / "data"
    if (folder / "test.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.steps * options.batch
    if options.tiny:
        found = {"train": made(2 * rows), "test": made(options.test_pairs)}
    else:
        config = load_config(CONFIG)
        files = {
            "train": options.train or config.data.comparisons,
            "test": options.test or config.data.reward_tests[0],
        }
        keep = _short(model_folder(options), config.backbone.max_length // 2)
        found = {}
        for name, path in files.items():
            read = load_comparisons(
                path, bad_rows="quarantine", quarantine_dir=folder / "bad"
            ).records
            found[name] = [row for row in read if keep(row)]
    if len(found["train"]) < 2 * rows:
        raise SystemExit(
            f"the training file has {len(found['train'])} usable pairs, {2 * rows} are needed:"
            " lower --steps or --batch"
        )
    write_jsonl(folder / "sft.jsonl", found["train"][:rows])
    write_jsonl(folder / "sft-0.jsonl", found["train"][: rows // 2])
    write_jsonl(folder / "sft-1.jsonl", found["train"][rows // 2 : rows])
    write_jsonl(folder / "dpo.jsonl", found["train"][rows : 2 * rows])
    write_jsonl(folder / "test.jsonl", found["test"][: options.test_pairs])


def _short(model: Path, most: int) -> Any:
    """A function that tells whether a pair's prompt has at most ``most`` tokens."""
    from transformers import AutoTokenizer

    from prefloop.data.chat import ChatFormat

    chat = ChatFormat.load(AutoTokenizer.from_pretrained(model), "chatml")
    return lambda row: len(chat.prompt_ids(row.prompt)) <= most


def made(count: int) -> list[Any]:
    """Pairs that differ."""
    from prefloop.records import Comparison, Message, Response, Vote

    return [
        Comparison(
            f"made-{i}",
            [Message("user", f"{i} and {i}?")],
            [Response(f"It is {2 * i}."), Response(f"Not {i}, not {i + 1}!")],
            [Vote("made", 0)],
        )
        for i in range(count)
    ]


def make_tiny(folder: Path) -> None:
    """A small model of random weights that reads bytes."""
    from shapes import make_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from prefloop.data.chat import CHATML

    make_model(folder, "tiny")
    special = ["<unk>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHATML,
    ).save_pretrained(folder)
