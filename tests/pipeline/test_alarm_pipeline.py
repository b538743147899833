"""What a run does when the alarm speaks: warn, stop or roll back, the same after kill -9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_run import copy_store, kill_at_step, run, run_afresh, summary, write_config
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SENSITIVE = (
    "--algo",
    "rloo",
    "--ppo.steps",
    "5",
    "--ppo.alarm.kl",
    "-5",
    "--ppo.alarm.every",
    "3",
    "--ppo.alarm.length-ratio",
    "None",
    "--ppo.alarm.repetition",
    "None",
    "--ppo.alarm.gold-drop",
    "None",
)
"""Any KL is an alarm, at the first look in step 3, and no policy but the first is well within that
limit.
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run that ``alarm.action`` warn let train on; others in the same folder reuse its
    first stages.
    """
    path = write_config(tmp_path_factory.mktemp("alarm"), tiny_folder)
    (path.parent / "warned.txt").write_text(run(path, *SENSITIVE))
    return path


def adapter(config: Path, slot: str, *parts: str, runs: str = "runs") -> dict[str, torch.Tensor]:
    return load_file(
        config.parent.joinpath(runs, "t", "artifacts", slot, *parts, "adapter_model.safetensors")
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def events(config: Path, kind: str, slot: str = "rloo") -> list[dict[str, Any]]:
    """Events of the stage's latest build."""
    found = [
        json.loads(x)
        for x in (config.parent / "runs" / "t" / "artifacts" / slot / "events.jsonl").open()
    ]
    return [event for event in found if event["event"] == kind]


def told(config: Path, slot: str = "rloo") -> dict[str, Any]:
    return next(s["metrics"] for s in summary(config)["stages"] if s["name"] == slot)


def test_warn_says_so_and_keeps_the_best_policy_beside_the_result(config: Path) -> None:
    output = (config.parent / "warned.txt").read_text()
    (event,) = events(config, "alarm")
    assert (event["action"], event["step"]) == (
        "warn",
        3,
    ) and "the KL to the reference is" in event["reasons"][0]
    assert "rloo: reward hacking? step 3: the KL to the reference" in output
    assert len(events(config, "step")) == 5 and all(
        "repetition" in step for step in events(config, "step")
    )
    found = told(config)["alarm"]
    assert (
        found["best_step"] == event["best_step"] == 1
        and found["result_step"] is None
        and found["steps"] == 5
    )
    assert same(adapter(config, "rloo", "best"), adapter(config, "sft")), (
        "step 1 sampled from the SFT policy"
    )
    assert not same(adapter(config, "rloo"), adapter(config, "sft"))
    report = (config.parent / "runs" / "t" / "report.html").read_text()
    assert "Reward hacking" in report and "Training went on." in report


def test_stop_ends_training_with_the_best_policy_its_value_head_and_its_figures(
    config: Path,
) -> None:
    output = run(config, *SENSITIVE, "--algo", "ppo", "--ppo.alarm.action", "stop")
    found, folder = told(config, "ppo"), config.parent / "runs" / "t" / "artifacts" / "ppo"
    (event,) = found["alarm"]["raised"]
    assert (event["action"], event["step"]) == ("stop", 3)
    assert (
        len(events(config, "step", "ppo")) == 3
        and "stopping; the result is the policy of step 1" in output
    )
    assert found["alarm"]["result_step"] == 1 and found["kl"] == pytest.approx(0, abs=1e-5)
    assert same(adapter(config, "ppo"), adapter(config, "sft"))
    head = load_file(folder / "value" / "head.safetensors")
    assert not head["linear.weight"].any() and not head["linear.bias"].any(), (
        "the value head starts from zero"
    )
    assert not (folder / "best").exists() and not (folder / "checkpoints").exists()
    report = (config.parent / "runs" / "t" / "report.html").read_text()
    untrained = "ppo is the policy of step 1, from before its first update"
    assert "Training was stopped" in report and untrained in report and untrained in output


def test_rollback_goes_back_doubles_the_penalty_and_ends_alike_after_a_kill(config: Path) -> None:
    flags = (
        *SENSITIVE,
        "--ppo.steps",
        "12",
        "--ppo.alarm.action",
        "rollback",
        "--ppo.alarm.rollbacks",
        "2",
    )
    run(config, *flags)
    alarms, whole = events(config, "alarm"), adapter(config, "rloo")
    steps = {event["step"]: event for event in events(config, "step")}
    assert [event["action"] for event in alarms] == ["rollback", "rollback", "stop"]
    assert [event["step"] for event in alarms] == [3, 6, 9]
    assert [event["kl_coef"] for event in alarms] == pytest.approx([0.1, 0.2, 0.2])
    for event in alarms[:2]:
        after = steps[event["step"] + 1]
        assert after["kl"] == pytest.approx(0, abs=1e-4) and after["kl_coef"] == event["kl_coef"]
    found = told(config)["alarm"]
    assert len(found["raised"]) == 3 and found["result_step"] == found["best_step"]

    # Sparse checkpoints: the kill loses steps and a rollback among them, and they are done again.
    away = (*flags, "--output", str(config.parent / "killed"), "--ppo.optim.checkpoint-every", "4")
    copy_store(config, config.parent / "killed", without="rloo")
    kill_at_step(config, "rloo 7/", *away)
    assert "resuming rloo" in run_afresh(config, *away)
    assert same(adapter(config, "rloo", runs="killed"), whole)
    again = json.loads((config.parent / "killed" / "t" / "summary.json").read_text())
    (metrics,) = (s["metrics"] for s in again["stages"] if s["name"] == "rloo")
    assert metrics["alarm"] == found
