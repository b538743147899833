"""Every number of the configuration and of the commands has a range, whichever way it comes in."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from prefloop.cli import Command, _main, guarded
from prefloop.config import JudgeConfig, OptimConfig, PPOConfig, RLHFConfig
from prefloop.config.load import parse, validated
from prefloop.config.ranges import Range, count_in, range_of
from prefloop.errors import ConfigError

ODD = (-1, 0, math.nan, math.inf, -math.inf, 1e300, 2**70, True)
FREE = {
    "backbone.adapter.options",
    "evaluate.asking.extra_body",
    "asking.extra_body",
    "trl.args",
}
"""Dictionaries of anything: a method's card has the ranges of the first, the next two must be JSON,
and TRL's own classes look at the last.
"""
BELOW_ZERO = {"ppo.rewards", "trl.rewards", "ppo.reward_model_weight", "ppo.alarm.kl"}
"""Where a number below 0 has a meaning."""


class Number(NamedTuple):
    """A number somewhere in a dataclass."""

    path: str
    span: Range | None
    said: str
    """The docstring of its field."""
    shape: str
    """How a value stands in its field: alone, in a list, or in a dictionary."""


def docstrings(kind: type) -> dict[str, str]:
    """Field → the string below it."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def numbers(kind: Any, path: str = "", said: str = "", shape: str = "alone") -> Iterator[Number]:
    """All numbers below an annotation, found by reflection alone."""
    if hasattr(kind, "__metadata__"):
        span, kind = range_of(kind), typing.get_args(kind)[0]
        if span is not None:
            yield Number(path, span, said, shape)
            return
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        yield Number(path, None, said, shape)
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for owner in kind.__mro__[::-1]:
            texts = docstrings(owner) if dataclasses.is_dataclass(owner) else {}
            for name in inspect.get_annotations(owner):
                yield from numbers(hints[name], f"{path}.{name}".lstrip("."), texts.get(name, ""))
    elif origin in (list, dict, tuple):
        last = inner[0] if origin is tuple else inner[-1]
        assert last is not Any or path in FREE, f"{path} may hold any number: give it a range"
        yield from numbers(last, path, said, origin.__name__)
    elif origin in (typing.Union, types.UnionType):
        for one in inner:
            yield from numbers(one, path, said, shape)


def flat(text: str) -> str:
    """A message without the lines and boxes that it is put into."""
    return "".join(text.replace("│", "").split())


FIELDS = list(numbers(RLHFConfig))


def tree(number: Number, value: Any) -> dict[str, Any]:
    """A configuration with ``value`` in one field."""
    *outer, name = number.path.split(".")
    item: Any = {"alone": value, "list": [value], "dict": {"http://h": value}}[number.shape]
    if outer[-1:] == ["annotators"]:
        outer, name, item = outer[:-1], "annotators", [{name: value}]
    item = {name: item}
    if name.startswith("price_"):  # they go together
        item = dict.fromkeys(("price_prompt", "price_completion"), value)
    for part in reversed(outer):
        item = {part: item}
    return item


def test_the_search_finds_numbers_wherever_they_stand() -> None:
    paths = {number.path for number in FIELDS}
    assert {
        "seed",
        "ppo.kl.coef",
        "ppo.rewards",
        "label.annotators.noise",
        "ppo.kl.stop",
        "evaluate.asking.timeout",
    } <= paths
    assert len(paths) >= 100


def test_no_number_of_the_configuration_or_of_a_command_is_without_a_range() -> None:
    of_commands = [n for command in typing.get_args(Command) for n in numbers(command)]
    assert {"port", "show", "count", "density", "resamples"} <= {
        n.path.rpartition(".")[2] for n in of_commands
    }
    assert not [n.path for n in (*FIELDS, *of_commands) if n.span is None]


@pytest.mark.parametrize("number", FIELDS, ids=lambda number: number.path)
def test_odd_values_are_refused_by_name_or_mean_what_the_field_says(number: Number) -> None:
    for value in ODD:
        try:
            validated(tree(number, value), "x.yaml")
        except ConfigError as error:
            assert (
                number.path.rpartition(".")[2] in str(error)
                and "found" in str(error)
                and len(str(error)) < 500
            )
            continue
        if value == 0:
            assert "0" in number.said or "none" in number.said, (
                f"{number.path}: the docstring does not say what 0 means"
            )
        else:
            assert value == -1 and number.path in BELOW_ZERO


@pytest.mark.parametrize("number", FIELDS, ids=lambda number: number.path)
def test_both_ends_of_a_range_are_taken_and_what_lies_beyond_is_not(number: Number) -> None:
    span = number.span
    assert span is not None
    kind = TypeAdapter(typing.Annotated[span.kind, span])
    for end, beyond in ((span.least, -math.inf), (span.most, math.inf)):
        assert kind.validate_python(end) == end
        outside = (
            end + math.copysign(1, beyond) if span.kind is int else math.nextafter(end, beyond)
        )
        if not (span.zero and outside == 0):
            with pytest.raises(ValidationError, match="expected a "):
                kind.validate_python(outside)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [n for n in FIELDS if n.shape == "alone" and "annotators" not in n.path][::5]
)
def test_flags_refuse_what_files_refuse(number: Number, capsys: pytest.CaptureFixture[str]) -> None:
    flag = f"--{number.path.replace('_', '-')}"
    for value in ("nan", "1e300" if number.span and number.span.kind is float else str(2**70)):
        with pytest.raises(SystemExit) as caught:
            parse([flag, value], "rlhf.py", "")
        said = flat(capsys.readouterr().err)
        assert (
            caught.value.code == 2
            and flat(f"Error parsing {flag}: expected {number.span}, found '{value}'") in said
        )


def test_python_is_refused_what_files_are() -> None:
    with pytest.raises(
        ValidationError, match=r"steps\n  expected a whole number from 1 to 2,147,483,647"
    ):
        PPOConfig(steps=0)
    with pytest.raises(ValidationError, match="learning_rate"):
        dataclasses.replace(OptimConfig(), learning_rate=-0.01)
    with pytest.raises(ConfigError, match=r"extra_body.*JSON"):
        JudgeConfig(extra_body={"top_p": math.inf})


def test_0_stays_where_it_means_something() -> None:
    config = validated(
        yaml.safe_load(
            "{generation: {temperature: 0}, evaluate: {temperature: 0}, sft: {eval_share: 0, optim:"
            " {max_grad_norm: 0, warmup_steps: 0}},reward: {holdout: 0}, ppo: {samples_every: 0,"
            " kl: {coef: 0}, rewards: {http://h: -0.5}}}"
        ),
        "x",
    )
    assert config.sft.optim.max_grad_norm == 0 and config.ppo.rewards == {"http://h": -0.5}


@pytest.mark.parametrize(
    "words",
    [
        ("check", "f.jsonl", "--show", "-3"),
        ("judge", "--judge", "reward:r", "--a", "a", "--b", "b", "--resamples", "0"),
        ("judge", "--judge", "reward:r", "--a", "a", "--b", "b", "--timeout", "nan"),
        *(
            ("judge", "--judge", "reward:r", "--a", "a", "--b", "b", flag, value)
            for flag, value in (("--samples", "0"), ("--limit", "-3"), ("--pairs-per-prompt", "0"))
        ),
        ("chat", "r", "--max-new-tokens", "0"),
        ("label", "up", "--port", "99999"),
        ("label push", "f.jsonl", "--dataset", "d", "--min-submitted", "0"),
        ("label pull", "--dataset", "d", "--output", "o", "--every", "0.9"),
        ("label next", "p", "--output", "o", "--count", "0"),
        ("reward eval", "r", "f", "--limit", "-1"),
        ("bench", "r", "--batch-size", "0"),
        ("chat", "r", "--temperature", "inf"),
        ("adapters merge", "a", "b", "c", "--density", "0"),
        ("adapters merge", "a", "b", "c", "--weights", "1", "nan"),
        ("advise", "--data", "pairs:" + "9" * 5000),
        ("presets", "--rows", "9" * 5000),
        ("plan", "c.yaml", "--gpu", "9" * 400),
    ],
    ids=" ".join,
)
def test_commands_refuse_numbers_that_make_no_sense(
    words: tuple[str, ...],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("backbone: {model: 'shape:7b'}")
    try:
        code = guarded(
            _main, [part for word in words[:1] for part in word.split()] + list(words[1:])
        )
    except SystemExit as stop:
        code = stop.code
    said = flat(capsys.readouterr().err)
    flag = [word for word in words if word.startswith("--")][-1]
    assert code == 2 and flag in said and len(said) < 2000, said
    assert "expecteda" in said or "give" in said, said


def test_help_still_names_the_kind_of_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], "rlhf.py", "")
    said = capsys.readouterr().out
    assert (
        "--seed INT" in said
        and "--ppo.kl.coef FLOAT" in said
        and "--ppo.importance-cap {None}|FLOAT" in said
    )


def test_none_switches_off_from_the_command_line_as_in_a_file() -> None:
    assert parse(["--ppo.importance-cap", "none"], "", "").ppo.importance_cap is None


def test_a_count_in_a_text() -> None:
    assert [count_in(text) for text in ("6_000", "6,000", "0", "-1", "", "nan", "9" * 5000)] == [
        6000,
        6000,
        *[None] * 5,
    ]
