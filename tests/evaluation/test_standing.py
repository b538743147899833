"""A judge that may be guessing is quoted nowhere: in a comparison's table, a summary, a card, or by
the judge command.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import make_run

from prefloop.artifacts.manifest import MANIFEST
from prefloop.base.console import console
from prefloop.base.sealed import read_sealed, write_sealed
from prefloop.cli import _main, guarded
from prefloop.evaluation.judges.ensemble import RewardGrader
from prefloop.evaluation.reward_metrics import PairMetrics
from prefloop.evaluation.standing import quotable, unproven


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


def comparison(judge: str) -> dict[str, Any]:
    """Results by gold, by the run's reward model and by a judge that was asked."""
    row = {
        "gold_mean": 0.5,
        "win_rate_vs_sft": 0.6,
        "reward_win_rate": 0.9,
        "reward_ci_low": 0.8,
        "reward_ci_high": 0.95,
        "llm_judge": "reward:other",
        "llm_win_rate": 0.7,
        "lc_judge": judge,
        "lc_win_rate": 0.65,
        "sign_test_p": 0.1,
    }
    control = {"gold": {"win_rate": 0.5}, "reward": {"win_rate": 0.5}}
    return {"results": {"ppo": row}, "control": control, "matrix": {"judge": judge, "rate": []}}


def test_what_a_reward_model_at_chance_says_is_left_out_and_the_rest_stays() -> None:
    found, why = quotable(comparison("gold scorer"), measured(0.3, 0.8))
    assert why.startswith("The reward model is right on 55.0 %") and why.endswith("are not shown.")
    row = found["results"]["ppo"]
    assert not any("reward" in name for name in row) and (
        row["win_rate_vs_sft"],
        row["lc_win_rate"],
    ) == (0.6, 0.65)
    assert set(found["control"]) == {"gold"} and "matrix" in found
    found, _ = quotable(comparison("reward model"), measured(0.3, 0.8))
    assert (
        not {"lc_win_rate", "sign_test_p"} & set(found["results"]["ppo"]) and "matrix" not in found
    )
    assert quotable(comparison("reward model"), measured(0.6, 0.8)) == (
        comparison("reward model"),
        "",
    )


def test_a_reward_model_that_was_asked_to_judge_is_held_to_the_same() -> None:
    asked = comparison("reward:other") | {
        "judging": {"judge": "reward:other", "unproven": "is right on nothing"}
    }
    found, why = quotable(asked, measured(0.6, 0.8))
    assert (
        why
        == "The judge reward:other is right on nothing: its verdicts name no winner, and are not"
        " shown."
    )
    row = found["results"]["ppo"]
    assert (
        not {"llm_win_rate", "lc_win_rate"} & set(row)
        and row["reward_win_rate"] == 0.9
        and "matrix" not in found
    )


@pytest.mark.parametrize(
    "odd",
    [{"results": 3, "control": [], "matrix": "x", "judging": 1}, {"results": {"ppo": None}}, {}],
)
def test_files_that_hold_other_kinds_of_value_are_left_to_their_reader(odd: dict[str, Any]) -> None:
    assert quotable(odd, measured(0.3, 0.8))[0] == odd


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
