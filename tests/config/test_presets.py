"""Presets: the field's values in the place of the defaults, and everything that is said by file or
flag over them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import add_random_role

from prefloop.cli import _main as cli
from prefloop.config import RLHFConfig
from prefloop.config.adapters import CARDS
from prefloop.config.load import load_config, parse, validated
from prefloop.config.presets import (
    _TIMES,
    COMPARISON,
    FEW,
    NAMES,
    OWN,
    Facts,
    billions,
    guides,
    smallest_side,
    tree,
)
from prefloop.data.files import count_rows
from prefloop.data.packing import Document, pack
from prefloop.errors import ConfigError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H

EVERY = pytest.mark.parametrize("name", NAMES)


def values(name: str, facts: Facts | None = None) -> dict[str, object]:
    return {guide.field: guide.value for guide in guides(name, facts)}


def parsed(*flags: str) -> RLHFConfig:
    return parse(flags, prog="t", description="")


@EVERY
def test_every_preset_is_a_valid_configuration_and_every_value_has_a_source(name: str) -> None:
    for facts in (None, Facts("lora", 4, "x-70B", 500), Facts("rslora", 16, "x-7B", 1_000_000)):
        found = guides(name, facts)
        assert len({g.field for g in found}) == len(found) and all(len(g.source) > 5 for g in found)
        validated(tree(found), name)
    config = parsed("--preset", name)
    assert config.preset == name and config.backbone.adapter.alpha == 2 * config.backbone.adapter.r


def test_a_preset_lies_between_the_defaults_and_the_file_and_flags_lie_over_all(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump(
            {"preset": "reasoning", "sft": {"patience": 7, "optim": {"learning_rate": 1e-5}}}
        )
    )
    config = parsed("--config", str(path), "--sft.patience", "9")
    guide = values("reasoning")
    assert config.backbone.adapter.r == guide["backbone.adapter.r"] == 64  # of the preset
    assert config.sft.optim.learning_rate == 1e-5  # of the file
    assert config.sft.patience == 9  # of a flag
    assert config.sft.optim.checkpoint_every == RLHFConfig().sft.optim.checkpoint_every  # a default
    assert load_config(path).sft.patience == 7 and load_config(path).backbone.adapter.r == 64
    assert parsed("--config", str(path), "--preset", "chat").backbone.adapter.r == 16


@EVERY
def test_every_value_of_a_preset_gives_way_to_what_the_file_says(name: str, tmp_path: Path) -> None:
    data, path = tmp_path / "d.jsonl", tmp_path / "c.yaml"
    data.write_text("{}\n" * 100)
    other = {"constant": "linear", "linear": "constant"}
    mine = [
        dataclasses.replace(
            g, value=other[g.value] if isinstance(g.value, str) else type(g.value)(g.value * 2)
        )
        for g in guides(name, Facts(rows=100))
    ]
    path.write_text(
        yaml.safe_dump({"preset": name, "data": {"demonstrations": str(data)}} | tree(mine))
    )
    config = load_config(path)
    for guide in mine:
        value: Any = config
        for part in guide.field.split("."):
            value = getattr(value, part)
        assert value == guide.value, guide.field
    assert len(mine) >= 17


def test_what_is_said_as_the_default_is_said_all_the_same(tmp_path: Path) -> None:
    default = RLHFConfig().backbone.adapter.r
    assert values("reasoning")["backbone.adapter.r"] != default
    assert (
        parsed("--preset", "reasoning", "--backbone.adapter.r", str(default)).backbone.adapter.r
        == default
    )
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump({"preset": "reasoning", "backbone": {"adapter": {"r": default}}})
    )
    assert load_config(path).backbone.adapter.r == default


def test_values_follow_from_what_file_and_flags_say(tmp_path: Path) -> None:
    assert parsed("--preset", "chat", "--backbone.adapter.r", "4").backbone.adapter.alpha == 8
    both = parsed(
        "--preset", "chat", "--backbone.adapter.r", "4", "--backbone.adapter.alpha", "5"
    ).backbone.adapter
    assert (both.r, both.alpha) == (4, 5)
    assert (
        parsed("--preset", "chat", "--backbone.adapter.method", "rslora").backbone.adapter.alpha
        == 16
    )
    assert (
        parsed("--preset", "chat", "--backbone.model", "org/Some-33B-Chat").sft.optim.learning_rate
        == 1e-4
    )
    data = tmp_path / "d.jsonl"
    data.write_text("{}\n" * 1000)
    sft = parsed(
        "--preset", "chat", "--data.demonstrations", str(data), "--sft.batch-size", "10"
    ).sft
    assert (sft.epochs, sft.eval_share, sft.eval_every, sft.optim.warmup_steps) == (
        8,
        0.1,
        22,
        0.03,
    )  # 90 steps a pass
    assert (
        parsed("--preset", "chat", "--data.demonstrations", str(tmp_path / "none")).sft.epochs == 3
    )


def test_a_preset_waits_for_nothing_where_nothing_is_held_out(tmp_path: Path) -> None:
    rows = tmp_path / "d.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n' * 500)
    chat = ("--preset", "chat", "--data.demonstrations", str(rows))
    held, none = parsed(*chat).sft, parsed(*chat, "--sft.eval-share", "0").sft
    assert (held.eval_share, held.patience, held.eval_every) == (0.1, 3, 14)
    assert (none.eval_share, none.patience, none.eval_every) == (0, None, 20)
    with pytest.raises(ConfigError, match=r"sft.patience is 4 with sft.eval_share 0: "):
        parsed(*chat, "--sft.eval-share", "0", "--sft.patience", "4")


def test_rates_depend_on_method_size_and_stage() -> None:
    name = "sft.optim.learning_rate"
    assert (
        values("chat", Facts(model="Llama-7B"))[name]
        == 2e-4
        == 2 * values("chat", Facts(model="Llama-65B"))[name]
    )  # QLoRA
    assert values("chat", Facts("full"))["preference.optim.learning_rate"] == 1e-6  # DPO's own
    assert values("chat", Facts("ia3"))[name] == pytest.approx(2e-3)
    assert [values("chat", Facts(rows=n))["sft.epochs"] for n in (1_000, 50_000, 500_000)] == [
        8,
        3,
        2,
    ]


def test_a_stage_that_learns_with_lion_takes_smaller_steps_and_says_so() -> None:
    adamw = parsed("--preset", "chat", "--sft.optim.name", "paged_adamw8bit")
    lion = parsed("--preset", "chat", "--sft.optim.name", "paged_lion8bit")
    assert lion.sft.optim.learning_rate == pytest.approx(adamw.sft.optim.learning_rate / 5)
    assert lion.reward.optim.learning_rate == adamw.reward.optim.learning_rate
    told = next(
        g
        for g in guides("chat", Facts(lion=frozenset({"sft"})))
        if g.field == "sft.optim.learning_rate"
    )
    assert "2302.06675" in told.source
    own = parsed("--preset", "chat", "--sft.optim.name", "lion", "--sft.optim.learning-rate", "0.5")
    assert own.sft.optim.learning_rate == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in CARDS if name != "mole"])
def test_a_preset_gives_dropout_to_the_methods_that_have_it_and_a_run_takes_it(
    method: str, tiny_folder: Path
) -> None:
    """Whether a pass with dropout differs from the next."""
    flags = (
        "--backbone.adapter.method",
        method,
        "--backbone.adapter.r",
        "4",
        "--backbone.model",
        str(tiny_folder),
    )
    config = parsed(
        "--preset", "chat", *flags, "--backbone.precision", "fp32", "--backbone.max-length", "256"
    )
    backbone = Backbone.load(config.backbone, tiny_folder, torch.device("cpu"))
    add_random_role(backbone, "policy")
    packed = pack([Document(list(range(10, 30)), [list(range(30, 50))], [0])])
    with backbone.role("policy", train=True, dropout=True):
        one, two = (hidden_N_H(backbone, packed).detach() for _ in range(2))
    assert (config.backbone.adapter.dropout > 0) == (not torch.equal(one, two))


def test_every_method_has_a_rate_and_says_where_it_comes_from() -> None:
    name = "sft.optim.learning_rate"
    assert _TIMES.keys() == CARDS.keys()
    found = {
        method: next(g for g in guides("chat", Facts(method)) if g.field == name)
        for method in CARDS
    }
    for method, (times, why) in _TIMES.items():
        assert found[method].value == pytest.approx(2e-4 * times) and why in found[method].source
        assert why or method == "lora"
    rates = {method: guide.value for method, guide in found.items()}
    assert (
        rates["full"]
        < rates["lora"]
        < rates["bitfit"]
        < rates["ia3"]
        == rates["vera"]
        < rates["p-tuning-v2"]
        < rates["prompt"]
    )
    sources = [why for _, why in _TIMES.values() if why]
    assert all(
        s.startswith((OWN, COMPARISON, FEW)) or "/" in s for s in sources
    )  # an own choice, or a place to look it up


def test_a_rank_over_the_smallest_layer_is_lowered_and_said(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smallest_side(str(tiny_folder)) == 32  # keys and values: two heads of 16
    config = parsed("--preset", "domain", "--backbone.model", str(tiny_folder))
    assert (config.backbone.adapter.r, config.backbone.adapter.alpha) == (32, 64)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "preset domain: backbone.adapter.r is 32, lowered from 128" in said
        and "has a layer with a side of 32" in said
    )
    for method, most in (("adalora", 20), ("hra", 32)):
        flags = (
            "--preset",
            "domain",
            "--backbone.model",
            str(tiny_folder),
            "--backbone.adapter.method",
            method,
        )
        flags += ("--backbone.precision", "bf16")
        assert parsed(*flags).backbone.adapter.r == most
    capsys.readouterr()
    assert (
        parsed(
            "--preset", "domain", "--backbone.model", str(tiny_folder), "--backbone.adapter.r", "99"
        ).backbone.adapter.r
        == 99
    )
    assert (
        parsed(
            "--preset", "classification", "--backbone.model", str(tiny_folder)
        ).backbone.adapter.r
        == 8
    )
    assert "lowered" not in capsys.readouterr().out  # what a user says is not; what fits is not
    assert smallest_side("no/such-model") is None and smallest_side("not a name at all/") is None


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("org/SmolLM2-135M-Instruct", 0.135),
        ("Qwen2.5-7B", 7),
        ("llama-13b-hf", 13),
        ("phi_1.5b", 1.5),
        ("gpt2", None),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7),  # 1M is its context
        ("/data/500M-tokens/llama-merged", None),
        ("/m/llama_8b_1m/", 8),
        ("a4b2", None),
    ],
)
def test_sizes_are_read_from_names(model: str, size: float | None) -> None:
    assert billions(model) == size


def test_rows_are_counted_in_every_kind_of_file(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.jsonl").write_text("{}\n\n{}\n")
    (tmp_path / "b.json").write_text(json.dumps([{}, {}, {}]))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("{}\n" * 4)
    (tmp_path / "d.json").write_text("[{")
    assert [
        count_rows(tmp_path / n) for n in ("a.jsonl", "b.json", "c.jsonl.gz", "d.json", "e")
    ] == [
        2,
        3,
        4,
        None,
        None,
    ]


def test_an_unknown_preset_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"preset: unknown 'chta' \(did you mean 'chat'\?; one of chat, classification,"
            r" reasoning, domain\)"
        ),
    ):
        parsed("--preset", "chta")


def test_the_command_prints_values_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    cli(["presets", "reasoning", "--rows", "1000"])
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "backbone.adapter.r 64" in said
        and "2405.09673" in said
        and "sft.optim.warmup_steps" in said
        and "chat" not in said
    )


@pytest.mark.parametrize("width", [80, 120])
def test_sources_stand_under_their_values_within_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.base.console.console.width", width)
    cli(["presets", "--method", "p-tuning-v2"])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines) and max(map(len, lines)) > width - 20
    for guide in guides("chat", Facts("p-tuning-v2")):
        row = next(
            i for i, line in enumerate(lines) if line.split() == [guide.field, str(guide.value)]
        )
        below = lines[row + 1 : row + 9]
        assert (
            guide.source
            in " ".join(line.strip() for line in below if line.startswith(" " * 6))[
                : len(guide.source)
            ]
        )


def test_what_would_change_the_values_is_said_where_it_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for words in (["--model", "foo/bar"], ["--model", "foo/bar-7B", "--rows", "6,000"]):
        cli(["presets", "chat", *words])
        said.append(" ".join(capsys.readouterr().out.split()))
    assert (
        "'foo/bar' contains no size" in said[0]
        and "sft.eval_every depends on the number of demonstrations: set --rows" in said[0]
    )
    assert (
        "contains no size" not in said[1]
        and "set --rows" not in said[1]
        and "sft.eval_every" in said[1]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chta"], "did you mean 'chat'"),
        (["--method", "lorra"], "did you mean 'lora'"),
        (["nope"], r"unknown 'nope' \(one of chat, classification, reasoning, domain\)$"),
        (["--rows", "0"], "give 1 or more"),
        (["--rows", "abc"], "'abc' is not a number of demonstrations"),
        (["--model", "./nowhere"], "does not exist"),
    ],
)
def test_what_the_command_cannot_print_is_told(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cli(["presets", *words])
