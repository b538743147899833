"""What a person sees of PPO's steps, and the sample responses: the table on a terminal, the line in
a log, the rows of samples.jsonl.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loop_run import kill_at_step, run, write_config
from rich.console import Console
from step_figures import STEP, UPDATE, figures

import prefloop.base.console
from prefloop.base.console import progress
from prefloop.records import Message, Prompt
from prefloop.rollouts.engine import Rollout
from prefloop.training import samples
from prefloop.training.scoring import Scored
from prefloop.training.step_table import (
    HEADER_EVERY,
    Bounds,
    StepTable,
    columns,
    header,
    phases,
    plain,
    row,
)

ASKED = ("reward", "KL", "length", "entropy", "clipped", "expl.var", "gap", "time")


def terminal(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return (
        Console(
            file=out,
            force_terminal=True,
            width=width,
            soft_wrap=True,
            color_system=None,
            highlight=False,
        ),
        out,
    )


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_row_stands_under_its_header_and_fits(width: int) -> None:
    shown = columns(STEP, width, step_width=7)
    head, line = header(shown, 7).plain, row(STEP, shown, "12/200", 7, Bounds()).plain
    assert len(head) == len(line) <= width
    assert (
        set(ASKED) <= set(head.split()) and len(head.split()) == len(line.split()) == len(shown) + 1
    )
    assert dict(zip(head.split(), line.split(), strict=True)) | {"step": ""} == {
        name: value
        for name, value in {
            "step": "",
            "reward": "+0.512",
            "gold": "0.653",
            "score": "+0.400",
            "std": "1.020",
            "KL": "5.44",
            "coef": "0.0500",
            "length": "38.5",
            "finished": "87.5%",
            "entropy": "1.234",
            "clipped": "5.1%",
            "ratio": "1.010",
            "expl.var": "-0.25",
            "gap": "1.2e-05",
            "p.loss": "-0.010",
            "v.loss": "0.600",
            "grad": "0.31",
            "time": "20.0s",
            "tok/s": "120",
        }.items()
        if name in head.split()
    }


def test_wider_terminals_show_more_and_nothing_that_a_narrower_one_shows_is_lost() -> None:
    found = [[c.head for c in columns(STEP, width, 4)] for width in (40, 80, 100, 160, 300)]
    for narrow, wide in itertools.pairwise(found):
        assert [head for head in wide if head in narrow] == narrow and len(wide) > len(narrow)
    assert {"reward", "KL", "length"} <= set(found[0]) and "gold" in found[2]


def test_values_that_an_algorithm_does_not_have_take_no_column() -> None:
    update = dataclasses.replace(UPDATE, value_loss=None)
    without = figures(explained_variance=None, update=update, gold_mean=None)
    assert not {"expl.var", "v.loss", "gold"} & {c.head for c in columns(without, 300, 4)}
    assert "expl.var" not in plain(without, "grpo", "1/6") and "gold" not in plain(
        without, "grpo", "1/6"
    )


@pytest.mark.parametrize(("gap", "style"), [(0.01, ""), (0.03, "yellow"), (0.06, "bold red")])
def test_the_gap_is_colored_from_half_of_its_bound_on(gap: float, style: str) -> None:
    metrics = figures(logprob_gap=gap)
    line = row(metrics, columns(metrics, 100, 4), "1/6", 4, Bounds(logprob_gap=0.05))
    assert [str(span.style) for span in line.spans] == ([style] if style else [])


def test_a_value_too_long_for_its_column_keeps_the_row_aligned() -> None:
    metrics = figures(explained_variance=-123456.789, reward_mean=98765.4321, kl=float("nan"))
    shown = columns(metrics, 80, 4)
    line = row(metrics, shown, "1/6", 4, Bounds()).plain
    assert (
        len(line) == len(header(shown, 4).plain) and "-1.23e+05" not in line[:12] and "nan" in line
    )


def test_phases_give_way_from_the_shortest() -> None:
    assert (
        phases(STEP) == "generate 10.0s 240 tok/s · score 4.0s 600 tok/s · optimise 6.0s 400 tok/s"
    )
    assert phases(STEP, 64) == "generate 10.0s 240/s · score 4.0s 600/s · optimise 6.0s 400/s"
    assert phases(STEP, 50) == "generate 10.0s 240/s · optimise 6.0s 400/s"
    assert phases(STEP, 10) == "generate 10.0s 240/s"
    assert phases(figures(seconds={}, tokens_per_second={})) == ""


def test_a_terminal_gets_rows_with_the_phases_below_and_the_header_now_and_then() -> None:
    to, out = terminal(100)
    table = StepTable("ppo", 30, to=to)
    for step in range(1, HEADER_EVERY + 2):
        table.show(step, STEP)
    lines = out.getvalue().splitlines()
    heads = [i for i, line in enumerate(lines) if line.split()[:2] == ["step", "reward"]]
    assert heads == [0, 1 + 2 * HEADER_EVERY] and len(lines) == 2 * (HEADER_EVERY + 1) + 2
    assert lines[1].split()[0] == "1/30" and lines[2].split()[0] == "generate"
    assert max(map(len, lines)) <= 100


def test_a_log_gets_one_line_a_step_with_everything_asked_for() -> None:
    out = io.StringIO()
    table = StepTable("ppo", 6, to=Console(file=out, width=80, soft_wrap=True, highlight=False))
    table.show(1, STEP)
    table.show(2, STEP)
    first, second = out.getvalue().splitlines()
    assert (
        first
        == "  ppo 1/6  reward +0.512  gold 0.653  KL 5.44  length 38.5  entropy 1.234  clipped 5.1%"
        "  expl.var -0.25  gap 1.2e-05  20.0s (generate 10.0s 240 tok/s, score 4.0s 600 tok/s,"
        " optimise 6.0s 400 tok/s)  1m40s left"
    )
    assert second.endswith("1m20s left") and "\x1b" not in out.getvalue()


def test_the_progress_bar_stays_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    to, out = terminal(80)
    monkeypatch.setattr(prefloop.base.console, "console", to)
    table = StepTable("ppo", 6, to=to)
    with progress("ppo", 6, "step", lines=False) as advance:
        for step in (1, 2):
            table.show(step, STEP)
            advance()
    shown = out.getvalue()
    assert "1/6" in shown and "2/6" in shown and shown.index("reward") < shown.index("1/6")
    assert all(len(line) < 240 for line in shown.splitlines())


def scored(count: int, each: int) -> Scored:
    length_B = torch.tensor([2] * count * each)
    rollouts = [Rollout(i // each, [i, 1], [-1.0, -1.0], True) for i in range(count * each)]
    old_R = torch.arange(count * each).repeat_interleave(2) / 10
    zero_R = torch.zeros_like(old_R)
    reward_B = torch.arange(count * each).float()
    return Scored(
        rollouts,
        [],
        length_B,
        sampler_logp_R=zero_R,
        old_logp_R=old_R,
        reference_logp_R=zero_R,
        value_R=zero_R,
        reward_B=reward_B,
        spread_B=zero_R[: count * each],
    )


def test_samples_are_of_the_same_prompts_whenever_a_rollout_has_them() -> None:
    chat: Any = SimpleNamespace(decode=lambda ids: f"answer {ids[0]}")
    prompts = [Prompt(str(i), [Message("user", f"question {i}")]) for i in range(6)]
    found = samples.rows(chat, prompts, scored(6, 2), step=3)
    again = samples.rows(chat, prompts[::-1], scored(6, 2), step=4)
    assert [r["id"] for r in found] == [r["id"] for r in again] and len(found) == samples.PROMPTS
    for r in found:
        first = 2 * int(r["id"])
        assert (
            r["response"] == f"answer {first}"
            and r["reward"] == first
            and r["length"] == 2
            and r["step"] == 3
        )
        assert (
            r["kl"] == pytest.approx(2 * first / 10)
            and r["prompt"][0]["content"] == f"question {r['id']}"
        )


def test_samples_after_the_checkpoint_are_dropped_before_they_are_made_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / samples.FILE
    samples.keep_until(path, 0)
    samples.append(path, [{"step": 1, "response": "a\u2028b"}, {"step": 2}, {"step": 3}])
    with path.open("a") as file:
        file.write('{"step": 4, "resp')  # torn by a kill
    samples.keep_until(path, 2)
    with path.open("a") as file:
        file.write('["no row of ours"]\n')
    samples.keep_until(path, 2)
    samples.append(path, [{"step": 3}])
    assert [json.loads(line)["step"] for line in path.open(encoding="utf-8")] == [1, 2, 3]


@pytest.mark.slow
def test_a_killed_run_shows_logs_and_samples_every_step_once(
    tmp_path: Path, tiny_folder: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = write_config(tmp_path, tiny_folder)
    flags = ("--algo", "rloo", "--trackers", "tensorboard", "--reward.members", "2")
    seen = kill_at_step(config, "rloo 3/", *flags)
    assert "  reward +" in seen[-1] or "  reward -" in seen[-1], seen[-5:]
    output = run(config, *flags)
    assert (
        "resuming rloo" in output and "  rloo 4/4  reward" in output and "  rloo 1/4" not in output
    )
    folder = tmp_path / "runs" / "t"
    rows = [
        json.loads(line)
        for line in (folder / "artifacts" / "rloo" / samples.FILE).open(encoding="utf-8")
    ]
    assert [r["step"] for r in rows] == [
        step for step in (1, 2, 3, 4) for _ in range(samples.PROMPTS)
    ]
    steps: dict[str, list[list[int]]] = {}
    for path in sorted((folder / "trackers" / "tensorboard").iterdir()):
        found = accumulator.EventAccumulator(str(path)).Reload()
        stage = path.name.split("-")[0]
        tag = "reward_mean" if stage == "rloo" else "loss"
        steps.setdefault(stage, []).append([scalar.step for scalar in found.Scalars(tag)])
        if stage == "rloo":
            told = set(found.Tags()["scalars"])
            assert {"kl", "logprob_gap", "seconds/generate", "tokens_per_second/generate"} <= told
    assert steps["rloo"] == [[1, 2, 3, 4]] and len(steps["sft"]) == 1 and len(steps["reward"]) == 2
    assert all(run == list(range(1, len(run) + 1)) for runs in steps.values() for run in runs)
