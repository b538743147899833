"""A configuration says everything once; YAML that is none is told in a sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from prefloop.config.load import load_config, parse, validated
from prefloop.config.yaml_file import parse_yaml
from prefloop.errors import ConfigError
from prefloop.evaluation.judges.rubric import read_rubric
from prefloop.pipeline.algorithms import algorithm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ppo: {steps: 3}\nrun: t\nppo: {steps: 4}\n",
            "the key 'ppo' is given twice, in lines 1 and 3: keep one",
        ),
        (
            "ppo:\n  steps: 3\n  kl: {coef: 1}\n  'steps': 4\n",
            "the key 'steps' is given twice, in lines 2 and 4",
        ),
        ("run: " + "[" * 5000, "is not valid YAML: it is nested too deeply"),
        ("run: !!int zz\n", "is not valid YAML: a value is none of its type"),
        ("seed: " + "1" * 5000 + "\n", "is not valid YAML: a value is none of its type"),
        ("run: [\n", "is not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused_by_file(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(tmp_path / "c.yaml")
    assert (
        str(error.value).startswith(f"config file '{tmp_path / 'c.yaml'}'")
        and len(str(error.value)) < 1000
    )


def test_a_merged_key_may_be_given_again() -> None:
    text = "base: &b {a: 1, c: 0}\nouter: {inner: &i {<<: *b, a: 2}}\nother: {<<: *i, c: 3}\n"
    assert parse_yaml(text, "x")["other"] == {"a": 2, "c": 3}


def test_a_criterion_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key 'short' is given twice, in lines 1 and 3"):
        read_rubric("short: 1\nright: 2\nshort: 3\n")


def test_an_error_about_a_huge_value_is_short(tmp_path: Path) -> None:
    names = "abcdefgh"
    lines = ["x0: &a [" + ", ".join(["lol"] * 9) + "]"]
    lines += [
        f"x{i}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for i, (a, b) in enumerate(itertools.pairwise(names), 1)
    ]
    (tmp_path / "c.yaml").write_text(
        "notes:\n  - " + "\n  - ".join(line.partition(": ")[2] for line in lines) + "\n"
    )
    with pytest.raises(
        ConfigError, match=r"aliases \(\*name\) stand for more than 100,000 values"
    ) as error:
        load_config(tmp_path / "c.yaml")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("notes: " + "[" * 20_000, "nested too deeply"),
        ("seed: " + "9" * 5_000, "none of its type"),
        (
            "seed: 0x" + "f" * 5_000,
            "'seed': expected a whole number from 0 to .* a number of thousands of digits",
        ),
        ("ppo: {gamma: !!float x}", "none of its type"),
        ("seed: !!int zz", "none of its type"),
        ("notes: &a [*a]", "line 1 holds an alias to itself"),
        ("notes: &a [x, {y: *a}]", "line 1 holds an alias to itself"),
        ("seed: !" + "x" * 10_000 + " 1", "no.* YAML"),
        ("algo: " + "x" * 10_000, "unknown algorithm"),
        ("x" * 1_000 + ": 1", "unknown key 'x+"),
        ("backbone: {adapter: {options: {" + "x" * 900 + ": 1}}}", "has no such option"),
        (
            "backbone: {adapter: {method: mole, options: {experts: [" + "x, " * 9_000 + "1]}}}",
            "two or more LoRA",
        ),
        (
            "backbone: {adapter: {method: mole, options: {experts: [a, " + "x" * 300 + "]}}}",
            "experts: .* longer than files",
        ),
        ("ppo: {rewards: {" + "x" * 900 + ": no}}", "expected a number"),
        ("ppo: {steps: 3}\nppo: {epochs: 2}", "'ppo' is given twice, in lines 1 and 2"),
    ],
    ids=lambda text: text[:24],
)
def test_odd_files_are_refused_in_few_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        algorithm(load_config(tmp_path / "c.yaml"))
    assert len(str(error.value)) < 1_500


def test_merges_that_multiply_are_refused_before_they_are_merged(tmp_path: Path) -> None:
    names = "abcdefghijkl"
    lines = ["a: &a {k: 1}"]
    lines += [
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in itertools.pairwise(names)
    ]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="stand for more than"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/tmp/x",
        "..",
        ".",
        ".store",
        "",
        " ",
        "a/b",
        "a\n",
        "a\tb",
        "a\0b",
        "x" * 101,
        "ü" * 51,
        "end ",
        "-v",
        "a:b",
    ],
)
def test_a_runs_name_is_a_plain_folder_below_the_output(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"'run': expected a plain name without .*not beginning"):
        validated({"run": name}, "x")
    with pytest.raises(SystemExit) as stop:
        parse([f"--run={name}"], "rlhf.py", "")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and (
        "Error parsing --run: expected a plain name" in said or "control characters" in said
    )


@pytest.mark.parametrize(
    "name", ["demo", "hh_ppo", "Run 2.1-b", "Läufe", "x" * 100, "a.b", "dpo=0.1", "a+b@(1),c~#d"]
)
def test_plain_names_of_runs_are_taken(name: str) -> None:
    assert validated({"run": name}, "x").run == name


@pytest.mark.parametrize(
    "field",
    [
        "output",
        "gold",
        "backbone.model",
        "backbone.chat_template",
        "label.home",
        "evaluate.judge",
        "data.prompts",
    ],
)
def test_paths_that_no_system_takes_are_refused_by_name(field: str) -> None:
    for name in ("x" * 256, "a/" * 3000, *(["a\0b"] if field != "data.prompts" else [])):
        tree: object = name
        for part in reversed(field.split(".")):
            tree = {part: tree}
        with pytest.raises(ConfigError, match=f"'{field}': expected a path or name"):
            validated(tree, "x")


def test_a_setting_that_is_gone_is_answered_with_what_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("sft: {packing: false}")
    for arguments in (
        ["--config", str(path)],
        ["--sft.packing", "False"],
        ["--sft.no-packing"],
        ["--sft.packing=True"],
    ):
        with pytest.raises(ConfigError, match=r"'sft.packing' is gone: demonstrations always"):
            parse(arguments, "rlhf.py", "")
