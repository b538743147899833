"""``summary.json`` keeps what the run was told, so that a report can show it and the run can be had
again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import report_fixture
import yaml

from prefloop.artifacts.codec import read
from prefloop.artifacts.store import Artifact
from prefloop.base.console import console
from prefloop.base.redact import command_without_secrets, tree_without_secrets
from prefloop.config import RLHFConfig
from prefloop.config.load import load_config
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.stage import Stage
from prefloop.report.closing import show
from prefloop.report.summary import Summary
from prefloop.runs.runtime import Runtime, environment
from prefloop.runs.work import Work


class Nothing(Stage):
    """A stage that does nothing."""

    name = produces = "nothing"

    def parts(self) -> dict[str, Any]:
        return {}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        return {}


def told(folder: Path, config: RLHFConfig | None) -> Any:
    Pipeline([Nothing()], Runtime(output=folder / "runs")).run(
        folder / "runs" / "demo", config=config
    )
    return json.loads((folder / "runs" / "demo" / "summary.json").read_text(encoding="utf-8"))[
        "config"
    ]


def test_the_configuration_in_the_summary_and_in_the_report_gives_the_same_run_again(
    tmp_path: Path,
) -> None:
    config = load_config(Path("examples/demo.yaml"))
    kept = told(tmp_path, config)
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(kept), encoding="utf-8")
    assert load_config(again) == config
    page = (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    printed = page.split('<section id="settings">')[1].split("<code>")[2].split("</code>")[0]
    assert yaml.safe_load(printed.replace("&#39;", "'").replace("&#34;", '"')) == kept


def test_the_configuration_in_the_summary_holds_no_secret(tmp_path: Path) -> None:
    config = RLHFConfig()
    config.generation.server = "http://user:hunter2@host:8000/v1?key=abc"
    config.ppo.rewards = {"http://u:hunter2@host/score": 1.0}
    kept = told(tmp_path, config)
    assert kept["generation"]["server"] == "http://host:8000/v1" and kept["ppo"]["rewards"] == {
        "http://host/score": 1.0
    }
    for path in (tmp_path / "runs" / "demo").glob("*.*"):
        assert b"hunter2" not in path.read_bytes()


def test_no_secret_of_notes_command_or_model_is_in_any_file_of_a_run(tmp_path: Path) -> None:
    secret = "hunt'3r \"4/2"
    address = f"http://u:{secret}@host/x"
    config = RLHFConfig(notes=[address, "key Bearer abc123def456"])
    config.backbone.model = address
    runtime = Runtime(config.backbone, output=tmp_path / "runs")
    runtime.model_fingerprint = "0"  # no model is looked for
    folder = tmp_path / "runs" / "demo"
    command = command_without_secrets(["rlhf.py", "--rollout", address])
    Pipeline([Nothing()], runtime, notes=config.notes).run(folder, command, config=config)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (
        summary["disclosure"] == ["http://host/x", "key Bearer ***"]
        and summary["model"] == "http://host/x"
    )
    for path in (path for path in folder.glob("*.*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("hunt", "3r ", "4/2@", "abc123def456") if word in text], path


def test_stages_composed_by_hand_have_no_configuration(tmp_path: Path) -> None:
    assert told(tmp_path, None) == {}


def test_secrets_leave_nested_values_and_names() -> None:
    tree = {"http://u:p@h/x": ["https://h/y?t=1", 3, None, {"deep": "x=http://a@b"}]}
    assert tree_without_secrets(tree) == {
        "http://h/x": ["https://h/y", 3, None, {"deep": "x=http://b"}]
    }


def test_the_closing_table_has_no_column_that_no_row_fills(
    capsys: pytest.CaptureFixture[str],
) -> None:
    summary = report_fixture.summary() | {"reward_model": {}}
    show(read(Summary, summary), None)
    assert {"gold", "reward", "KL"} <= set(capsys.readouterr().out.split())
    show(read(Summary, report_fixture.without_gold(summary)), None)
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "policy" in line)
    assert "gold" not in head and head.split()[:4] == ["policy", "wins", "%,", "reward"]
    assert any(line.split()[:1] == ["A/A"] for line in lines)


def test_the_closing_table_has_a_column_for_the_judge_and_says_what_length_did() -> None:
    summary = report_fixture.summary() | {
        "stages": [],
        "config": {"gold": "g.py:score"},
    }
    results, estimate = summary["results"], report_fixture.estimate
    results["dpo"]["wins"]["judge"] = estimate(0.44, 0.3, 0.6)
    results["dpo"] |= {"length_mean": 90.0} | report_fixture.level("gold scorer", 0.61, 0.5, 0.7)
    ppo = results["ppo"]
    results["base"] = ppo | {"wins": ppo["wins"] | {"gold": estimate(0.48, 0.4, 0.57)}}
    with console.capture() as captured:
        show(read(Summary, summary), None)
    said = " ".join(captured.get().split())
    assert (
        "wins %, gold wins %, judge wins %, reward" in said
        and "44.0 [30, 60]" in said
        and "…" not in said
    )
    assert (
        "at equal length (its answers are 2.2 times as long as SFT's; 70.3 % as they are)" in said
    )
    assert "80 prompts do not tell the bare model from SFT: 48.0 % [40.0, 57.0]." in said
    assert (
        "base: the bare model; A/A: SFT against itself" in said and "program (g.py:score)" in said
    )
    del summary["results"]["base"]
    with console.capture() as captured:
        show(read(Summary, summary | {"control": {}}), None)
    assert not {"base:", "A/A:"} & set(captured.get().split())


def test_a_summary_names_the_versions_of_the_libraries_that_train() -> None:
    assert {"torch", "transformers", "peft", "trl"} <= environment()["versions"].keys()
