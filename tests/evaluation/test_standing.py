"""A judge that may be guessing is quoted nowhere: in a comparison's table, a summary, a card, or by
the judge command.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import make_run

from prefloop.artifacts.manifest import MANIFEST
from prefloop.artifacts.results import (
    AtEqualLength,
    Estimate,
    Evaluation,
    Judging,
    Matrix,
    PolicyResult,
)
from prefloop.base.console import console
from prefloop.base.sealed import read_sealed, write_sealed
from prefloop.cli import _main, guarded
from prefloop.evaluation.judges.ensemble import RewardGrader
from prefloop.evaluation.reward_metrics import PairMetrics
from prefloop.evaluation.standing import unproven
from prefloop.report.summary import quotable


def measured(low: float, high: float, pairs: int = 15) -> dict[str, Any]:
    return {
        "accuracy": (low + high) / 2,
        "accuracy_low": low,
        "accuracy_high": high,
        "held_out_pairs": pairs,
    }


def test_only_an_interval_above_one_half_proves_anything() -> None:
    assert (
        unproven(measured(0.27, 0.79))
        == "is right on 53.0 % [27.0, 79.0] of 15 held-out pairs, which does not exclude chance"
    )
    assert unproven(measured(0.5, 0.7)).endswith("does not exclude chance")
    assert unproven(measured(0.2, 0.45)).endswith("worse than chance")
    assert unproven(measured(0.501, 0.7)) == ""
    assert unproven({}) == unproven({"accuracy": 0.4}) == ""  # of a version before the interval
    assert "reward.holdout" in unproven({"held_out_pairs": 0})


def test_the_interval_is_over_prompts_and_leaves_ties_out() -> None:
    margin_P, label_P = (
        torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]),
        torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0]),
    )
    found = PairMetrics(margin_P, label_P, torch.zeros(5), ["a", "a", "b", "b", "c"]).bounds()
    assert 0 <= found["accuracy_low"] < 1 / 3 < found["accuracy_high"] <= 1  # prompts: 1, 0 and 0
    assert PairMetrics(torch.ones(1), torch.full((1,), 0.5), torch.zeros(1), ["a"]).bounds() == {}


def comparison(judge: str, unproven: str = "") -> Evaluation:
    """Results by gold, by the run's reward model and by a judge that was asked."""
    row = PolicyResult(
        gold=Estimate(0.5),
        wins={
            "gold": Estimate(0.6),
            "reward": Estimate(0.9, 0.8, 0.95),
            "judge": Estimate(0.7),
        },
        judge="reward:other",
        disagreement=0.2,
        at_equal_length=AtEqualLength(judge, Estimate(0.65)),
        sign_test_p=0.1,
    )
    control = {"gold": Estimate(0.5), "reward": Estimate(0.5)}
    asked = Judging("reward:other", unproven=unproven)
    return Evaluation({"ppo": row}, control, Matrix(judge, ["ppo"]), asked)


def test_the_verdicts_of_a_reward_model_at_chance_are_left_out_and_the_rest_stays() -> None:
    found, why = quotable(comparison("gold scorer"), measured(0.3, 0.8))
    assert why.startswith("The reward model is right on 55.0 %") and why.endswith("are not shown.")
    row = found.results["ppo"]
    assert set(row.wins) == {"gold", "judge"} and row.at_equal_length.win.value == 0.65
    assert set(found.control) == {"gold"} and found.matrix.policies
    found, _ = quotable(comparison("reward model"), measured(0.3, 0.8))
    row = found.results["ppo"]
    assert row.at_equal_length == AtEqualLength() and row.sign_test_p is None
    assert found.matrix == Matrix()
    sound = comparison("reward model")
    assert quotable(sound, measured(0.6, 0.8)) == (sound, "")


def test_a_reward_model_that_was_asked_to_judge_is_held_to_the_same() -> None:
    found, why = quotable(comparison("reward:other", "is right on nothing"), measured(0.6, 0.8))
    assert why == (
        "The judge reward:other is right on nothing: its verdicts name no winner, and are not"
        " shown."
    )
    row = found.results["ppo"]
    assert set(row.wins) == {"gold", "reward"} and row.disagreement is None
    assert row.at_equal_length == AtEqualLength() and found.matrix == Matrix()


def test_the_judge_command_shows_no_rate_of_a_reward_model_at_chance(
    tmp_path: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "_width", 200)
    run = make_run(tmp_path / "runs", "a", tiny_folder, slots=("sft", "reward"))
    for name, words in (("a", "Paris is it."), ("b", "I do not know that.")):
        rows = [
            f'{{"id": "p{n}", "prompt": "Question {n}?", "response": "{words} {n}"}}\n'
            for n in range(12)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = {f"--{name}": str(tmp_path / f"{name}.jsonl") for name in "ab"}
    options = {**files, "--judge": f"reward:{run}", "--cache": str(tmp_path / "verdicts.jsonl")}
    command = ["judge", *(word for option in options.items() for word in option)]
    assert guarded(_main, command) == 0
    assert "a wins %" in capsys.readouterr().out
    manifest = (run / "artifacts" / "reward").resolve() / MANIFEST
    said = read_sealed(manifest)
    said["metrics"] |= measured(0.3, 0.8)
    write_sealed(manifest, {name: value for name, value in said.items() if name != "digest"})
    assert RewardGrader(run).unproven.endswith("does not exclude chance")
    assert guarded(_main, command) == 0
    out = capsys.readouterr().out
    assert "its verdicts name no winner, and none is shown" in out and "wins" not in out.replace(
        "no winner", ""
    )
