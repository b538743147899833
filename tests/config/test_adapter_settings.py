"""Which settings of backbone.adapter a method takes, and which of them vLLM does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from loop_run import environment

from prefloop.config import AdapterConfig, BackboneConfig, GenerationConfig
from prefloop.config.adapters import CARDS, options_of
from prefloop.config.load import parse
from prefloop.errors import ConfigError, EngineError
from prefloop.rollouts.check import check


@pytest.mark.parametrize(
    ("method", "option", "wrong"),
    [
        (card.name, option, wrong)
        for card in CARDS.values()
        for option in card.ranges
        for wrong in ("below", "endless")
    ],
)
def test_every_number_among_the_options_has_its_range(method: str, option: str, wrong: str) -> None:
    span, default = CARDS[method].ranges[option], CARDS[method].options[option]
    value = -1 if wrong == "below" else float("nan")
    with pytest.raises(ConfigError, match=f"options.{option} is {value:g}"):
        options_of(AdapterConfig(method=method, options={option: value}))
    for bad in ("x", True, [1], None):
        with pytest.raises(ConfigError, match=f"options.{option} is .*expected a value such as"):
            options_of(AdapterConfig(method=method, options={option: bad}))
    assert span.holds(default) and options_of(
        AdapterConfig(method=method, options={option: default})
    )


def test_ranges_are_those_of_the_papers_symbols() -> None:
    for method, option, value in (
        ("lora-drop", "share", 1.01),
        ("lora-drop", "share", 0),
        ("adalora", "start", 0.5),
        ("adalora", "beta1", 1),
        ("oft", "block", 1),
        ("vera", "key", -1),
        ("randlora", "scale", 0),
    ):
        with pytest.raises(ConfigError, match=rf"options.{option} is {value}: give a "):
            options_of(AdapterConfig(method=method, options={option: value}))
    assert options_of(AdapterConfig(method="lora-drop", options={"share": 1}))["share"] == 1.0


def test_every_option_that_is_a_number_has_a_range() -> None:
    for card in CARDS.values():
        numbers = {
            n
            for n, v in card.options.items()
            if isinstance(v, int | float) and not isinstance(v, bool)
        }
        assert numbers == set(card.ranges)


@pytest.mark.parametrize("method", [card.name for card in CARDS.values() if not card.dropout])
def test_dropout_is_refused_where_the_method_has_none(method: str) -> None:
    with pytest.raises(ConfigError, match=f"dropout is 0.1, but method {method} has none"):
        options_of(AdapterConfig(method=method, dropout=0.1))


def test_ranks_that_vllm_does_not_take_are_named_before_anything_runs() -> None:
    def with_rank(method: str, r: int) -> BackboneConfig:
        return BackboneConfig(adapter=AdapterConfig(method=method, r=r))

    adapter, server = (
        GenerationConfig(handover="adapter"),
        GenerationConfig(server="http://127.0.0.1:8000"),
    )
    with pytest.raises(
        EngineError,
        match=(
            r"of method pissa with backbone.adapter.r 300 have rank 600: vLLM supports LoRA ranks"
            r" up to 512: lower"
        ),
    ):
        check("server", server, with_rank("pissa", 300))
    with pytest.raises(
        EngineError,
        match=r"of method lora with backbone.adapter.r 513 have rank 513: .*handover merged",
    ):
        check("vllm", adapter, with_rank("lora", 513))
    check("vllm", adapter, with_rank("lora", 512))
    check("vllm", GenerationConfig(), with_rank("lora", 600))  # merged: no rank is left


def test_options_are_pairs_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--backbone.adapter.method",
        "mole",
        "--backbone.adapter.options",
        "experts",
        "[a/b, c]",
        "top_k",
        "1",
    ]
    adapter = parse(given, "rlhf.py", "").backbone.adapter
    assert adapter.options == {"experts": ["a/b", "c"], "top_k": 1}
    for given in (["experts", "[a"], ["experts"], ["experts", "/nope", "/nada"]):
        with pytest.raises(SystemExit):
            parse(["--backbone.adapter.options", *given], "rlhf.py", "")
    said = capsys.readouterr()
    assert "a list is one value, such as experts '[runs/a:sft, runs/b:sft]'" in " ".join(
        f"{said.out} {said.err}".replace("│", " ").split()
    )
    given = [
        "--backbone.adapter.method",
        "mole",
        "--backbone.adapter.options",
        "experts",
        "[runs/a:sft, runs/b:sft]",
    ]
    assert parse(given, "rlhf.py", "").backbone.adapter.options == {
        "experts": ["runs/a:sft", "runs/b:sft"]
    }
    with pytest.raises(
        ConfigError, match=r"experts is 'a', expected a list, such as experts '\[runs/a:sft, "
    ):
        options_of(AdapterConfig(method="mole", options={"experts": "a"}))


ONLY_SETTINGS = """
import sys
from prefloop.errors import ConfigError
from prefloop.config.load import parse
for method, *more in (
    ["dorra"],
    ["full"],
    ["lora+", "--backbone.adapter.options", "ratoi", "2"],
    ["lora+", "--backbone.adapter.options", "ratio", "0"],
    ["mole"],
    ["ia3", "--backbone.adapter.dropout", "0.1"],
):
    try:
        parse(["--backbone.adapter.method", method, *more], "rlhf.py", "")
    except ConfigError as error:
        print(error)
print(sorted({"torch", "transformers", "peft"} & sys.modules.keys()))
"""


def test_what_settings_alone_get_wrong_is_said_before_anything_heavy_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY_SETTINGS],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    *errors, heavy = done.stdout.splitlines()
    for error, said in zip(
        errors,
        (
            "unknown method 'dorra'",
            "full trains on bf16 and fp32",
            "did you mean 'ratio'",
            "ratio is 0",
            "mole mixes two",
            "ia3 has none",
        ),
        strict=True,
    ):
        assert said in error
    assert heavy == "[]"


def test_methods_that_only_merge_are_refused_where_vllm_wants_an_adapter() -> None:
    merged, plain_lora = (
        BackboneConfig(adapter=AdapterConfig(method=m)) for m in ("vera", "pissa")
    )
    server = GenerationConfig(server="http://127.0.0.1:8000")
    with pytest.raises(EngineError, match=r"vera reaches vLLM as merged weights alone.*lora"):
        check("server", server, merged)
    with pytest.raises(EngineError, match=r"generation.handover adapter.*vera"):
        check("vllm", GenerationConfig(handover="adapter"), merged)
    with pytest.raises(EngineError, match=r"generation.weights nf4.*vera"):
        check("vllm", GenerationConfig(weights="nf4"), merged)
    check("server", server, plain_lora)
