"""``prefloop advise`` writes configurations that the pipeline takes."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop import compose
from prefloop.cli import _main as cli
from prefloop.config import RLHFConfig
from prefloop.config.load import facts_of, load_config, parse
from prefloop.config.presets import NAMES, guides
from prefloop.errors import ConfigError
from prefloop.planning.advice import (
    GIB,
    KINDS,
    LATENCIES,
    MODELS,
    NEEDS,
    UNFIT,
    Situation,
    config_of,
)
from prefloop.planning.memory import SOLD
from prefloop.planning.propose import fits
from prefloop.planning.refusals import settled
from prefloop.planning.shapes import shape_of
from prefloop.planning.stages import Planner

FLAGS = [
    "advise",
    "--data",
    "pairs:6000",
    "--gpu",
    "24GiB",
    "--latency",
    "any",
    "--tasks",
    "1",
    "--alignment",
    "pairs",
]


def written(file: Path, *answers: Any) -> RLHFConfig:
    """What the file of some answers says; no line of it is long."""
    text = config_of(Situation(*answers))
    assert all(len(line) <= 130 for line in text.splitlines())
    file.write_text(text)
    return load_config(file)


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_of_answers_gives_a_configuration_that_runs(
    kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "advised.yaml"
    for rows, latency, tasks, need in itertools.product((500, 90_000), LATENCIES, (1, 4), NEEDS):
        config = written(file, kind, rows, 0, latency, tasks, need)
        if (rows, latency, tasks) == (500, "any", 1):
            assert compose(parse(["--config", str(file)], "rlhf.py", ""))
        assert not (config.ppo.uncertainty_penalty and config.reward.members < 2)
        settled(config, shape_of(MODELS[config.backbone.model], Path("x")))


@pytest.mark.parametrize("memory", [2, 4, 12, 24, 80])
def test_what_is_advised_for_a_card_fits_it_or_the_file_says_that_nothing_does(
    memory: int, tmp_path: Path
) -> None:
    file, models = tmp_path / "advised.yaml", set()
    for (kind, tasks), need in itertools.product((("pairs", 1), ("prompts", 4)), NEEDS):
        config = written(file, kind, 6_000, memory * GIB, "any", tasks, need)
        shape = shape_of(MODELS[config.backbone.model], Path("x"))
        settled(config, shape)
        said = " ".join(line.strip(" #") for line in file.read_text().splitlines())
        usable = int(SOLD * memory * GIB)
        assert fits(Planner(config, shape, usable).stages(), usable) == (UNFIT not in said)
        models.add(config.backbone.model)
    if memory in (2, 80):
        assert models == {[*MODELS][-1 if memory == 2 else 0]}


@pytest.mark.parametrize("preset", NAMES)
def test_values_are_those_of_the_preset(preset: str, tmp_path: Path) -> None:
    for kind, need, tasks in (
        ("demonstrations", "none", 1),
        ("pairs", "pairs", 4),
        ("thumbs", "rollouts", 1),
    ):
        config = written(tmp_path / "advised.yaml", kind, 6_000, 0, "any", tasks, need, preset)
        adapter = config.backbone.adapter
        known = guides(
            preset,
            dataclasses.replace(facts_of(config), method=adapter.method, r=adapter.r, rows=6_000),
        )
        tree = yaml.safe_load((tmp_path / "advised.yaml").read_text())
        text = " ".join(
            line.strip(" #") for line in (tmp_path / "advised.yaml").read_text().splitlines()
        )
        found = 0
        for guide in known:
            place = tree
            for name in guide.field.split("."):
                place = place.get(name, {}) if isinstance(place, dict) else {}
            if place != {}:
                found += 1
                assert (
                    place == pytest.approx(guide.value)
                    if isinstance(guide.value, float)
                    else place == guide.value
                )
                assert guide.field == "backbone.adapter.r" or " ".join(guide.source.split()) in text
        assert found >= 9


def test_without_an_alignment_need_the_run_is_sft_alone(tmp_path: Path) -> None:
    file = tmp_path / "advised.yaml"
    file.write_text(config_of(Situation("demonstrations", 6_000, 24 * GIB, "any", 1, "none")))
    config = load_config(file)
    assert [stage.name for stage in compose(config)] == ["sft"] and config.sft.eval_share > 0


@pytest.mark.parametrize(
    ("kind", "need", "stage"),
    [("pairs", "pairs", "dpo"), ("thumbs", "pairs", "kto"), ("pairs", "rollouts", "reward")],
)
def test_few_votes_get_enough_steps_to_learn_from(
    kind: str, need: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 pairs at the batch of 32 made five steps, and a result that said nothing."""
    file = tmp_path / "advised.yaml"
    cli(
        [
            *FLAGS,
            "--data",
            f"{kind}:150",
            "--gpu",
            "none",
            "--alignment",
            need,
            "--output",
            str(file),
        ]
    )
    config, said = load_config(file), capsys.readouterr().out
    batch = {"dpo": 8, "kto": 4}.get(stage, 32)  # two thumbs are one pair to KTO
    assert (config.preference.batch_pairs, config.preference.epochs) == (
        batch,
        3.0 if need == "pairs" else 1.0,
    )
    assert config.reward.batch_pairs == 4
    steps = re.search(rf"{stage} (\d+) steps, \d", " ".join(said.split()))
    assert (
        steps
        and int(steps[1]) == (34 if stage == "reward" else 57)
        and "expected on two CPU cores" in said
    )


def test_many_votes_keep_the_default_batch(tmp_path: Path) -> None:
    config = written(tmp_path / "advised.yaml", "pairs", 6_000, 0, "any", 1, "pairs")
    assert (config.preference.batch_pairs, config.reward.batch_pairs, config.preference.epochs) == (
        32,
        32,
        1.0,
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "pairs:10",
            (
                "10 rows make 8 steps of dpo, and under 20 little is learnt: a run like this takes"
                " (26) rows"
            ),
        ),
        ("thumbs:30", "30 rows make 12 steps of kto, and .* takes (51) rows"),
        ("demonstrations:10", "10 rows make 9 steps of sft"),
        ("pairs:60", "60 rows make 14 steps of reward"),
        (
            "pairs:90000",
            r"on two CPU cores, and ([\d,]+) about a day: give such a number, or name a GPU",
        ),
    ],
)
def test_a_run_that_cannot_learn_or_takes_days_is_not_written(
    data: str, said: str, tmp_path: Path
) -> None:
    """The number of rows that the refusal names is one that is taken."""
    need = {"demonstrations:10": "none", "pairs:60": "rollouts"}.get(data, "pairs")
    flags = [
        *FLAGS,
        "--gpu",
        "none",
        "--alignment",
        need,
        "--output",
        str(tmp_path / "config.yaml"),
    ]
    with pytest.raises(ConfigError, match=said) as refused:
        cli([*flags, "--data", data])
    assert not list(tmp_path.iterdir())
    if named := re.search(said, str(refused.value)).groups():  # type: ignore[union-attr]
        cli([*flags, "--data", f"{data.partition(':')[0]}:{named[0].replace(',', '')}"])
        assert load_config(tmp_path / "config.yaml")


def test_a_card_that_nobody_knows_is_no_reason_to_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli([*FLAGS, "--data", "pairs:400000", "--output", str(tmp_path / "config.yaml")])
    assert "in all: `prefloop plan --card` knows the speed" in " ".join(
        capsys.readouterr().out.split()
    )


def test_nobody_said_how_many_demonstrations_prompts_come_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli(
        [
            *FLAGS,
            "--data",
            "prompts:500",
            "--gpu",
            "none",
            "--output",
            str(tmp_path / "config.yaml"),
        ]
    )
    assert "sft depends on its data" in " ".join(capsys.readouterr().out.split())


def test_several_tasks_take_a_larger_adapter(tmp_path: Path) -> None:
    one, four = (config_of(Situation("pairs", 6_000, 0, "any", tasks, "pairs")) for tasks in (1, 4))
    assert "r: 16" in one and "r: 64" in four and "method: rslora" in four


def test_where_nothing_fits_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for gpu, unfit in (("1GiB", True), ("24GiB", False)):
        cli([*FLAGS, "--gpu", gpu, "--output", str(tmp_path / f"{gpu}.yaml")])
        assert ("No model fits" in capsys.readouterr().out) == unfit


def test_flags_answer_all_questions(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    cli([*FLAGS, "--output", str(file)])
    config = parse(["--config", str(file)], "rlhf.py", "")
    assert (config.algo, config.label.source, config.preference.beta) == ("dpo", "file", 0.1)


def test_a_small_models_rate_is_one_that_moves_it_and_a_large_ones_is_the_papers() -> None:
    """57 steps of DPO on 150 pairs left SmolLM2-135M where it was at 1e-5, the rate of a 7B
    model.
    """
    for alignment, stage in (("pairs", "preference"), ("rollouts", "ppo")):
        small, large = (
            yaml.safe_load(config_of(Situation("pairs", 6_000, memory, "any", 1, alignment)))[
                stage
            ]["optim"]
            for memory in (0, 80 * GIB)
        )
        assert small["learning_rate"] == pytest.approx(10 * large["learning_rate"])
    assert large["learning_rate"] == pytest.approx(3e-5)


def test_thumbs_are_learnt_with_kto_and_own_answers_with_rollouts() -> None:
    assert "algo: kto" in config_of(Situation("thumbs", 6000, 0, "any", 1, "pairs"))
    assert "algo: rloo" in config_of(Situation("pairs", 6000, 0, "any", 1, "rollouts"))


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="not overwritten"):
        cli([*FLAGS, "--output", str(file)])
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--data", "pears:10", "did you mean 'pairs'"),
        ("--data", "pairs", "KIND:ROWS"),
        ("--data", "pairs:0", "no rows"),
        ("--gpu", "big", "24GiB"),
        ("--latency", "quick", "one of any, low"),
        ("--tasks", "0", "1 or more"),
        ("--tasks", "abc", "'abc' is no number of tasks"),
        ("--alignment", "much", "none, pairs, rollouts"),
        ("--preset", "chatt", "did you mean 'chat'"),
    ],
)
def test_what_is_no_answer_is_told_with_what_would_be(
    flag: str, value: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        cli([*FLAGS, flag, value, "--output", str(tmp_path / "config.yaml")])
    assert not list(tmp_path.iterdir())


def test_without_a_terminal_a_missing_answer_names_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tasks"):
        cli([*FLAGS[:7], "--alignment", "pairs", "--output", str(tmp_path / "config.yaml")])


def test_questions_that_no_flag_answers_are_asked_until_there_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    answers = iter(["five", "0", "", "rolouts", "rollouts"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    file = tmp_path / "config.yaml"
    cli([*FLAGS[:7], "--output", str(file)])
    assert len(asked) == 5 and load_config(file).algo == "rloo"
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("give 1 or more") == 2 and "did you mean 'rollouts'" in said


def test_a_closed_terminal_and_a_flag_that_is_no_answer_ask_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", closed)
    words = [*FLAGS[:7], "--output", str(tmp_path / "config.yaml")]
    with pytest.raises(ConfigError, match="answer with --tasks"):
        cli(words)
    with pytest.raises(ConfigError, match="--alignment: unknown 'much'"):
        cli([*words, "--alignment", "much"])
    with pytest.raises(ConfigError, match="folder does not exist"):
        cli([*words[:-1], str(tmp_path / "none" / "config.yaml")])


@pytest.mark.parametrize("gpu", ["none", "24GiB"])
def test_the_command_that_is_printed_plans_the_file_and_it_fits(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("prefloop.commands.plan.machine_memory", lambda: 16 * GIB)
    file = tmp_path / "my run.yaml"
    cli([*FLAGS, "--gpu", gpu, "--output", str(file)])
    said = capsys.readouterr().out
    assert ("--card CPU" if gpu == "none" else "--gpu 24GiB") in " ".join(file.read_text().split())
    words = shlex.split(said.split("`")[1])
    assert words[:3] == ["prefloop", "plan", str(file)]
    shape = MODELS[load_config(file).backbone.model]
    cli([*words[1:], "--backbone.model", shape])  # the hub is not asked for the model
    assert "fits" in capsys.readouterr().out
