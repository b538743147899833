"""The report's part on reward hacking: what was watched, when the alarm spoke, what was done."""

from pathlib import Path
from typing import Any

import pytest
import report_fixture
from report_page import Page, report

from prefloop.errors import DataError


def alarm(**changes: Any) -> dict[str, Any]:
    return {
        "action": "stop",
        "watched": ["gold", "length", "KL", "repetition"],
        "steps": 60,
        "raised": [],
        "best_step": 22,
        "result_step": None,
    } | changes


def shown(folder: Path, found: Any) -> Page:
    data = report_fixture.summary()
    next(s for s in data["stages"] if s["name"] == "ppo")["metrics"]["alarm"] = found
    rows = report_fixture.events()
    for row in rows:
        if row["stage"] == "ppo" and "step" in row:
            row["repetition"] = 0.02 + 0.003 * row["step"]
    return report(folder, data, rows)


def raised(action: str, **changes: Any) -> dict[str, Any]:
    reasons = [
        "gold fell from 0.700 (steps 20 to 22) to 0.601 (steps 41 to 43)",
        "repeated 4-grams <rose>",
    ]
    return {
        "step": 43,
        "reasons": reasons,
        "action": action,
        "best_step": 22,
        "kl_coef": 0.1,
    } | changes


def test_a_stage_that_was_not_watched_has_no_such_part(tmp_path: Path) -> None:
    assert "Reward hacking" not in report(tmp_path).headings
    with pytest.raises(DataError, match=r"stage ppo: alarm: .*found 'nonsense'"):
        shown(tmp_path / "broken", "nonsense")


def test_an_algorithm_of_the_users_own_may_raise_the_alarm(tmp_path: Path) -> None:
    data = report_fixture.summary()
    stage = {"name": "mine", "metrics": {"alarm": alarm(raised=[raised("stop")])}}
    page = report(tmp_path, data | {"stages": [*data["stages"], stage]})
    assert "The alarm for reward hacking was raised in Mine" in page.text
    for other in (3, "off", {"threshold": 1}, alarm(watched=5)):
        stage["metrics"] = {"alarm": other}
        page = report(tmp_path / "other", data | {"stages": [*data["stages"], stage]})
        assert "Reward hacking" not in page.headings


def test_silence_is_said_with_its_steps_and_what_was_watched(tmp_path: Path) -> None:
    page = shown(tmp_path, alarm())
    assert "Reward hacking" in page.headings and "No alarm in 60 steps." in page.text
    assert (
        "Watched: gold against the reward, length, KL, repetition." in page.text
        and "Alarm." not in page.text
    )
    without = shown(tmp_path / "gold", alarm(watched=["length"])).text
    assert "Gold was not" in without


def test_an_alarm_is_told_with_its_reasons_its_step_in_every_curve_and_what_was_done(
    tmp_path: Path,
) -> None:
    page = shown(tmp_path, alarm(raised=[raised("stop")], result_step=22))
    assert "The alarm for reward hacking was raised in PPO" in page.text
    assert "was raised in" not in shown(tmp_path / "calm", alarm()).text
    assert (
        "PPO curves" in report(tmp_path / "unwatched").headings
        and "PPO curves" not in page.headings
    )  # drawn once
    assert (
        "Step 43: gold fell from 0.700 (steps 20 to 22)" in page.text
        and "repeated 4-grams <rose>" in page.text
    )
    assert (
        "Training was stopped; the result is the policy of step 22, the best until then."
        in page.text
    )
    assert "The PPO result is the policy that the rollouts of step 22 came from." in page.text
    part = page.source.split('id="hacking-1"')[1].split("</section>")[0]
    assert part.count("<svg ") == 5 == part.count(">alarm</text>")
    assert "repeated 4-grams (%)</text>" in part


def test_every_rollback_is_told_and_a_warning_names_the_policy_kept(tmp_path: Path) -> None:
    both = [raised("rollback"), raised("stop", step=57)]
    page = shown(tmp_path / "rollback", alarm(raised=both, result_step=22))
    assert (
        "Training went back to the policy of step 22" in page.text
        and "doubled to 0.100" in page.text
    )
    assert page.text.count("Alarm. ") == 2 and "Step 57" in page.text
    warned = shown(tmp_path / "warn", alarm(action="warn", raised=[raised("warn")])).text
    assert "Training went on." in warned and "lies beside it in the folder best" in warned
