"""A configuration says everything once; YAML that is none is told in a sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from prefloop.config.yaml_file import parse_yaml
from prefloop.errors import ConfigError
from prefloop.judging.rubric import read_rubric
from prefloop.settings import load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {steps: 3}\nrun: t\nppo: {steps: 4}\n", "the key 'ppo' is given twice, in lines 1 and 3: keep one"),
        ("ppo:\n  steps: 3\n  kl: {coef: 1}\n  'steps': 4\n", "the key 'steps' is given twice, in lines 2 and 4"),
        ("run: " + "[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("run: !!int zz\n", "is not valid YAML: a value is none of its type"),
        ("seed: " + "1" * 5000 + "\n", "is not valid YAML: a value is none of its type"),
        ("run: [\n", "is not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_by_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path / "c.yaml")
    assert str(error.value).startswith(f"config file '{tmp_path / 'c.yaml'}'") and len(str(error.value)) < 1000


def test_a_merged_key_may_be_given_again() -> None:
    text = "base: &b {a: 1, c: 0}\nouter: {inner: &i {<<: *b, a: 2}}\nother: {<<: *i, c: 3}\n"
    assert parse_yaml(text, "x")["other"] == {"a": 2, "c": 3}


def test_a_criterion_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key 'short' is given twice, in lines 1 and 3"):
        read_rubric("short: 1\nright: 2\nshort: 3\n")


def test_an_error_about_a_huge_value_is_short(tmp_path: Path) -> None:
    names = "abcdefgh"
    lines = ["x0: &a [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"x{i}: &{b} [{', '.join([f'*{a}'] * 9)}]" for i, (a, b) in enumerate(itertools.pairwise(names), 1)]
    (tmp_path / "c.yaml").write_text("notes:\n  - " + "\n  - ".join(line.partition(": ")[2] for line in lines) + "\n")
    with pytest.raises(ConfigError, match=r"'notes\.0': Input should be a valid string") as error:
        load(tmp_path / "c.yaml")
    assert len(str(error.value)) < 5_000
