"""Model folders, adapters' JSON files and chat templates of other people: each ends well, or in an
error of prefloop's that says what is wrong.

    # 60 folders, 12 times as many JSON files, 5 times as many templates
    python benchmarks/reliability/models.py --seed 1 --size 60

Each is a mutation of one that works. Folders and templates are opened in a process of their own,
whose processor time and memory are bounded. Prints a table of counts and, for every failure, what
was mutated and how to do it again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import pickle
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from safetensors.torch import load_file, save_file
from tiny import TOOLS, add_random_role, load, tiny_model, tiny_tokenizer

from prefloop.artifacts.references import HEAD, policy_of
from prefloop.base.sealed import file_digest
from prefloop.config import BackboneConfig
from prefloop.data.chat import CHATML, ChatFormat
from prefloop.data.encode import Encoder
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.models.heads import ScalarHead
from prefloop.models.lookup import resolve
from prefloop.models.reward_model import Saved
from prefloop.planning.shapes import shape_of
from prefloop.records import Demonstration, Message
from prefloop.runs.open import config_of

CPU_SECONDS, MEMORY = 60, 3 << 30
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    -64,
    1.5,
    10**9,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../..",
    "a" * 5000,
    "\x1b[31m",
    [],
    {},
    [[]],
    {"": None},
    [None],
    ["q_proj", 3],
    {"x": {"y": []}},
    "(a+",
    "model",
    "lora",
    [1] * 100,
)
BROKEN = (
    b"",
    b"[]",
    b"{",
    b"\xff\xfe{}",
    b"null",
    b'{"a": ' * 100_000,
    b"[" * 200_000,
    b'{"model_type": "llama"}',
    b"{}",
    b" " * (65 << 20),
)
FRAGMENTS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 2000000000 }}",
    "{{ 10 ** 10 ** 9 }}",
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{%"
        " endfor %}"
    ),
    "{{ '%999999999d' % 1 }}",
    "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(500) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ 1 / 0 }}",
    "{{ nothing.at.all }}",
    "{{ 1 + 'a' }}",
    "{{ 'a'|nope }}",
    "{% if %}",
    "{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ 'a'.encode() }}",
    "{% include 'x' %}",
    "{{ messages|tojson(indent=999999999) }}",
    "{{ lipsum(99999) }}",
    "{{ [1]|batch(999999999, 0)|list }}",
    "{{ 5|round(-999999999) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "<|im_end|>",
    "\ufdd0",
    "{#",
    "{% set a = [messages] %}" + "{% set a = [a, a, a] %}" * 40 + "{{ a }}",
    "{{ ''.join(range(99999)|map('center', 99999)) }}",
    "{{ messages }}",
)


def damaged(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON object with one to three values, at any depth, replaced, dropped or moved
    under another name.
    """
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        inner = value
        while isinstance(inner, dict) and inner:
            key = draw.choice(sorted(inner))
            if isinstance(inner[key], dict) and inner[key] and draw.random() < 0.7:
                inner = inner[key]
                continue
            how = draw.randrange(6)
            if how == 0:
                del inner[key]
            elif how == 1:
                inner[key[::-1]] = inner.pop(key)
            else:
                inner[key] = copy.deepcopy(draw.choice(VALUES))
            break
    return value


def damage_json(path: Path, draw: random.Random) -> str:
    if draw.random() < 0.2:
        content = draw.choice(BROKEN)
        path.write_bytes(content)
        return f"{path.name} = {content[:20]!r}… of {len(content)}"
    made = damaged(json.loads(path.read_text()), draw)
    path.write_text(json.dumps(made))
    return f"{path.name} = {json.dumps(made)[:300]}"


def damage_weights(path: Path, draw: random.Random) -> str:
    how = draw.choice(
        (
            "cut",
            "empty",
            "bits",
            "transposed",
            "fewer",
            "pickle",
            "gone",
            "folder",
            "index",
            "integers",
        )
    )
    content = path.read_bytes()
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    path.unlink()
    if how in ("cut", "empty"):
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    elif how == "bits":
        at = draw.randrange(2000)
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    elif how == "pickle":
        (path.parent / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    elif how == "folder":
        path.mkdir()
    elif how == "index":
        file = draw.choice(
            ("../other.safetensors", "/etc/passwd", "model.bin", "absent.safetensors", 3, ["x"])
        )
        (path.parent / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {name: file}})
        )
    elif how != "gone":
        if how == "fewer":
            del tensors[name]
        else:
            tensors[name] = (
                tensors[name].T if how == "transposed" else tensors[name].long()
            ).contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name}: {how} {name}"


def in_a_child(work: Callable[[], str]) -> str:
    """What ``work`` says, or the error that it ends in; bounded in time and memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a question would end here
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, outcome(work).encode()[-4000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        told = file.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return (
        told
        if status == 0
        else f"FAILED: ended by status {status}, which is time, memory or a crash"
    )


def outcome(work: Callable[[], str]) -> str:
    try:
        return work()
    except (ModelError, DataError, ConfigError) as error:
        plain = len(str(error)) < 2000 and "\x1b" not in str(error)
        return f"refused: {str(error)[:200]}" if plain else f"FAILED: message {str(error)[:500]!r}"
    except BaseException:
        return f"FAILED: {traceback.format_exc()[-1500:]}"


def open_folder(place: Path) -> str:
    """Plan, load, and read a row."""
    shape_of(str(place), place)
    config = BackboneConfig(model=place.name, precision="fp32", max_length=128)
    chat = load(
        resolve(str(place), place), **{k: getattr(config, k) for k in ("precision", "max_length")}
    ).chat
    Encoder(chat, 128).conversation(Demonstration("row", [Message("user", "Why?")], "So."))
    return "opened"


def folders(base: Path, work: Path, draw: random.Random, size: int) -> Iterator[tuple[str, str]]:
    files = (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
    )
    for number in range(size):
        place = work / f"model-{number}"
        shutil.copytree(base, place)
        name = files[number % len(files)]
        what = (damage_weights if name.endswith("tensors") else damage_json)(place / name, draw)
        yield what, in_a_child(lambda place=place: open_folder(place))  # type: ignore[misc]
        shutil.rmtree(place)


def adapters(base: Path, work: Path, draw: random.Random, size: int) -> Iterator[tuple[str, str]]:
    backbone = load(base)
    add_random_role(backbone, "made")
    whole = work / "adapter"
    backbone.save_role("made", whole)
    ScalarHead(64, "normal").save(whole)
    (whole / "reward.json").write_text(json.dumps({"members": 1, "temperature": 1.5}))
    sampling = {"temperature": 0.7, "max_new_tokens": 8, "engine": "transformers"}
    backbone_said = {
        "precision": "fp32",
        "max_length": 128,
        "rope": {"type": "none", "factor": 1.0},
        "adapter": {"method": "lora", "r": 4},
    }
    said = {
        "key": "k",
        "identity": {"backbone": backbone_said, "generation": sampling},
        "experts": [],
    }
    files = {"adapter_model.safetensors": file_digest(whole / "adapter_model.safetensors")}
    (whole / "prefloop.json").write_text(json.dumps({**said, "files": files}))

    def use() -> str:
        if name in ("head.json", "reward.json"):
            Saved.read(whole)
            ScalarHead.load(whole)
            return "opened"
        head = (whole / HEAD).rename(work / HEAD)
        try:
            policy = policy_of(whole)
            config_of(policy.origin, policy.name)
        finally:
            head.rename(whole / HEAD)
        backbone.add_role("tried", start=whole)
        return "opened"

    for number in range(size):
        name = (
            "adapter_config.json",
            "prefloop.json",
            "adapter_config.json",
            "head.json",
            "reward.json",
        )[number % 5]
        kept = (whole / name).read_bytes()
        what = damage_json(whole / name, draw)
        yield what, outcome(use)
        (whole / name).write_bytes(kept)


def templates(draw: random.Random, size: int) -> Iterator[tuple[str, str]]:
    turns = [Message("system", "Be kind."), Message("user", "Why? <|im_end|>")]
    for _ in range(size):
        source = draw.choice((CHATML, TOOLS))
        for _ in range(draw.randint(1, 2)):
            places = [0, *(found.end() for found in re.finditer("[%}]}", source))]
            at = draw.choice(places) if draw.random() < 0.8 else draw.randrange(len(source))
            part, how = draw.choice(FRAGMENTS), draw.randrange(4)
            if how < 2:  # loaded well, it meets the row alone
                part = "{% if messages|length > 2 %}" + part + "{% endif %}"
            source = (
                source[:at]
                + ("" if how == 3 else part)
                + source[at + (draw.randint(1, 9) if how == 3 else 0) :]
            )

        def use(source: str = source) -> str:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = source
            Encoder(ChatFormat.load(tokenizer), 500).conversation(
                Demonstration("row", turns, "So.")
            )
            return "opened"

        yield f"template {source!r}", in_a_child(use)


def campaign(seed: int, size: int) -> list[str]:
    """Print the counts; the failures, each with its reproduction."""
    torch.set_num_threads(1)
    failures = []
    with tempfile.TemporaryDirectory(prefix="prefloop-") as folder:
        work = Path(folder)
        base = tiny_model(work / "base")
        parts: dict[str, Iterator[tuple[str, str]]] = {
            "model folders": folders(base, work, random.Random(seed), size),
            "JSON of adapters": adapters(base, work, random.Random(seed), 12 * size),
            "templates": templates(random.Random(seed), 5 * size),
        }
        print(f"{'':18}{'opened':>8}{'refused':>8}{'failed':>8}")
        for name, cases in parts.items():
            counts: Counter[str] = Counter()
            for number, (what, end) in enumerate(cases):
                kind = end.partition(":")[0]
                counts[kind] += 1
                if kind not in ("opened", "refused"):
                    failures.append(f"--seed {seed}, {name} {number}: {what}\n  {end}")
            print(
                f"{name:18}{counts['opened']:8}{counts['refused']:8}{sum(counts.values()) - counts['opened'] - counts['refused']:8}"  # noqa: E501
            )
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=60)
    found = campaign(**vars(parser.parse_args()))
    print(*found, sep="\n")
    sys.exit(bool(found))
