"""What the report reads: a summary that is checked field by field and an event log that survived
kills and reruns.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture

from prefloop.artifacts.codec import read
from prefloop.errors import DataError
from prefloop.report.html import render, write_report
from prefloop.report.inputs import curves_of, read_curves, read_summary
from prefloop.report.summary import Summary

KEY = "k" * 64


def write_lines(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "events.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
        encoding="utf-8",
    )
    return path


def step(stage: str, number: int, value: float) -> dict[str, Any]:
    return {"stage": stage, "event": "step", "step": number, "loss": value}


def test_a_run_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo" / "artifacts").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"demp' is not the folder of a run \(did you mean '.*demo'\?\)"
    ):
        read_summary(tmp_path / "demp" / "summary.json")
    with pytest.raises(DataError, match="needs a run that has finished"):
        read_summary(tmp_path / "demo" / "summary.json")


def test_torn_lines_are_skipped_counted_and_mentioned(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path,
        step("sft", 1, 2.0),
        '{"stage": "sft", "ev',
        step("sft", 2, 1.0),
        '{"at": "2026-11',
    )
    curves, unreadable = read_curves(path)
    assert curves["sft"].series("loss") == ([1, 2], [2.0, 1.0])
    assert unreadable == 2
    assert "2 lines were torn and skipped" in render(Summary(), curves, unreadable)


def test_a_stage_that_starts_again_forgets_its_earlier_steps(tmp_path: Path) -> None:
    started = {"stage": "sft", "event": "stage", "status": "started"}
    path = write_lines(
        tmp_path,
        started,
        *(step("sft", i, 9.0) for i in (1, 2, 3)),
        step("dpo", 1, 5.0),
        started,
        step("sft", 2, 1.0),
    )
    curves, _ = read_curves(path)
    assert curves["sft"].series("loss") == ([2], [1.0])
    assert curves["dpo"].series("loss") == ([1], [5.0])


def test_a_resumed_stage_keeps_the_last_occurrence_of_every_step(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path,
        *(step("sft", i, 9.0) for i in (1, 2, 3, 4)),
        {"stage": "sft", "event": "stage", "status": "resumed"},
        *(step("sft", i, 1.0) for i in (3, 4, 5)),
    )
    curves, _ = read_curves(path)
    assert curves["sft"].series("loss") == ([1, 2, 3, 4, 5], [9.0, 9.0, 1.0, 1.0, 1.0])


def test_curves_are_drawn_from_artifacts_whose_hash_is_known(tmp_path: Path) -> None:
    """The run's log, which has no hash, stands in where a stage left no artifact."""
    store, links = tmp_path / "store", tmp_path / "artifacts"
    for stage in ("sft", "ppo", "ppo-2"):  # the slot of ppo is the second round's
        place = store / f"{stage}-{KEY[:16]}"
        place.mkdir(parents=True)
        write_lines(place, step(stage, 1, 2.0))
        report_extras.seal(place, stage, KEY)
    links.mkdir()
    (links / "sft").symlink_to(store / f"sft-{KEY[:16]}")
    write_lines(tmp_path, *(step(stage, 1, 9.0) for stage in ("sft", "ppo", "ppo-2", "dpo")))
    summary = read(
        Summary, {"stages": [{"name": s, "key": KEY} for s in ("sft", "ppo", "ppo-2", "dpo")]}
    )
    notes: list[str] = []
    curves, _ = curves_of(tmp_path, summary, notes)
    found = {stage: curve.series("loss")[1] for stage, curve in curves.items()}
    assert found == {"sft": [2.0], "ppo": [2.0], "ppo-2": [2.0], "dpo": [9.0]} and notes == []
    write_lines(store / f"ppo-{KEY[:16]}", step("ppo", 1, 3.0))
    curves, _ = curves_of(tmp_path, summary, notes)
    assert set(curves) == {"sft", "ppo-2", "dpo"}
    assert len(notes) == 1 and "ppo-kkkk" in notes[0] and "'events.jsonl' is damaged" in notes[0]


def test_unknown_events_and_odd_values_change_nothing(tmp_path: Path) -> None:
    odd = [
        {"event": "hello"},
        {"stage": "sft", "event": "eval", "step": 9},
        [1],
        {"stage": 3, "event": "step"},
    ]
    path = write_lines(
        tmp_path,
        *map(json.dumps, odd),
        step("sft", 1, 2.0),
        {**step("sft", 2, 0.0), "loss": "high"},
    )
    curves, unreadable = read_curves(path)
    assert curves["sft"].series("loss") == ([1], [2.0]) and unreadable == 0


def test_a_missing_summary_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"summary\.json: not found.*run the pipeline"):
        write_report(tmp_path)


def test_a_wrong_field_is_named_with_what_was_found(tmp_path: Path) -> None:
    data = report_fixture.summary()
    data["results"]["ppo"]["kl"]["value"] = "twelve"
    with pytest.raises(DataError, match=r"field 'results\.ppo\.kl\.value'.*found 'twelve'"):
        write_report(report_fixture.write_run(tmp_path, data, []))


def test_a_summary_of_the_version_before_reads_as_one_of_this(tmp_path: Path) -> None:
    """``former_summary.json`` is what that version wrote of the fixture's run."""
    shutil.copy(Path(__file__).with_name("former_summary.json"), tmp_path / "summary.json")
    former = read_summary(tmp_path / "summary.json")
    run = report_fixture.write_run(tmp_path / "now", report_extras.judged())
    now = read_summary(run / "summary.json")
    assert former.results["ppo"] == now.results["ppo"]
    assert (former.results["dpo"].failed, former.judging.total.cost) == (1, 0.5)
    for part in ("control", "samples", "stages", "annotators", "reward_model", "environment"):
        assert getattr(former, part) == getattr(now, part)
    assert (former.matrix, former.judging.used) == (now.matrix, now.judging.used)
    assert former.judging.position_bias == now.judging.position_bias
    text, pair = former.contamination.examples[1:]
    assert text.text == "Name three rivers." and (pair.id, pair.train_id) == ("q1", "d1")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert ">Name three rivers.</li>" in page and "q1 as d1 (prompt)</li>" in page


def test_looks_at_held_out_loss_stay_with_their_step_through_a_resume(tmp_path: Path) -> None:
    def look(number: int, value: float) -> dict[str, Any]:
        return {"stage": "sft", "event": "held_out", "step": number, "loss": value}

    path = write_lines(
        tmp_path,
        *(step("sft", i, 2.0) for i in (1,)),
        look(2, 3.0),
        step("sft", 2, 2.0),
        step("sft", 3, 2.0),
        look(4, 9.0),
        {"stage": "sft", "event": "stage", "status": "resumed"},
        step("sft", 3, 1.0),
        look(4, 2.5),
        step("sft", 4, 1.0),
    )
    curve = read_curves(path)[0]["sft"]
    assert curve.series("loss") == ([1, 2, 3, 4], [2.0, 2.0, 1.0, 1.0])
    assert curve.series("held_out_loss") == ([2, 4], [3.0, 2.5])
