"""lm-eval and sets of prompts on a run's adapters: compared with the base, paired by question,
resumable, and as a stage.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from bench_tasks import EXAMPLES, data_fixture, made_fixture  # noqa: F401
from made_run import Made, make_run

from prefloop.base.sealed import read_sealed
from prefloop.cli import _main, guarded
from prefloop.config import AdapterConfig, BackboneConfig, BenchConfig, DataConfig, RLHFConfig
from prefloop.data.source import Source
from prefloop.errors import ConfigError, DataError
from prefloop.evaluation.benchmarks import compare
from prefloop.evaluation.benchmarks import run as bench_run
from prefloop.evaluation.benchmarks.harness import HarnessSettings, Metric
from prefloop.evaluation.benchmarks.run import Domain, bench
from prefloop.evaluation.benchmarks.tasks import find
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.stages.bench import Bench
from prefloop.runs.runtime import Runtime


def test_bench_compares_every_adapter_with_the_base_and_pairs_by_question(
    made: Path, data: dict[str, Path]
) -> None:
    found = bench(made, find([str(EXAMPLES)], data), settings=HarnessSettings(limit=8))
    written = read_sealed(made / "bench.json")
    assert written == found and list(found["adapters"]) == ["base", "sft", "ppo"]
    assert set(found["tasks"]) == {"hellaswag_file", "truthfulqa_mc1_file"}
    swag = found["tasks"]["hellaswag_file"]
    assert (
        swag["metric"] == "acc_norm"
        and swag["higher_is_better"] is True
        and [m["metric"] for m in swag["more"]] == ["acc"]
    )
    assert set(swag["adapters"]) == {"base", "sft", "ppo"} and set(swag["difference"]) == {
        "sft",
        "ppo",
    }
    assert all(
        a["n"] == 8 and 0 <= a["value"] <= 1 and a["stderr"] is not None
        for a in swag["adapters"].values()
    )
    ppo = swag["difference"]["ppo"]
    assert ppo["value"] == swag["adapters"]["ppo"]["value"] - swag["adapters"]["base"]["value"]
    kept = [json.loads(path.read_text()) for path in (made / "bench").glob("*.json")]
    parts = {
        row["adapter"].rpartition(":")[2]: row["measured"]["hellaswag_file"]
        for row in kept
        if row["name"] == "hellaswag_file"
    }
    scores = {
        slot: next(m for m in ms if m["name"] == "acc_norm")["by_question"]
        for slot, ms in parts.items()
    }
    gaps = [scores["ppo"][q] - scores["base"][q] for q in scores["base"]]
    assert ppo["stderr"] == pytest.approx(statistics.stdev(gaps) / 8**0.5)
    assert (
        found["settings"]["reference"] == "base"
        and found["settings"]["apply_chat_template"] is False
    )
    assert found["environment"]["versions"]["torch"]


def test_a_killed_bench_goes_on_after_its_last_task_and_a_repeated_one_loads_nothing(
    tmp_path: Path, tiny_folder: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "t", tiny_folder, slots=("sft",))
    specs = find([str(EXAMPLES)], data)
    calls: list[str] = []
    real = bench_run.harness.measure

    def counted(model: Any, loaded: Any, settings: HarnessSettings) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(next(iter(loaded["tasks"])))
        return real(model, loaded, settings)

    monkeypatch.setattr(bench_run.harness, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        bench(run, specs, settings=HarnessSettings(limit=2))
    assert calls == ["hellaswag_file", "truthfulqa_mc1_file", "hellaswag_file"]
    calls.clear()
    first = bench(run, specs, settings=HarnessSettings(limit=2))
    assert calls == ["truthfulqa_mc1_file"]
    monkeypatch.setattr(bench_run, "_measure", lambda *_: pytest.fail("measured again"))
    assert bench(run, specs, settings=HarnessSettings(limit=2)) == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        bench(run, specs, settings=HarnessSettings(limit=3))
    rows = data["hellaswag_file"].read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(rows[::-1]))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        bench(
            run,
            find([str(EXAMPLES)], data | {"hellaswag_file": tmp_path / "other.jsonl"}),
            settings=HarnessSettings(limit=2),
        )


def test_a_chat_template_changes_the_questions_and_is_recorded(
    made: Path, data: dict[str, Path]
) -> None:
    specs = find(
        [str(EXAMPLES / "truthfulqa_mc1.yaml")],
        {"truthfulqa_mc1_file": data["truthfulqa_mc1_file"]},
    )
    bench(made, specs, ["sft"], HarnessSettings(limit=4), output=made / "plain.json")
    before = {path.name for path in (made / "bench").iterdir()}
    chat = bench(
        made,
        specs,
        ["sft"],
        HarnessSettings(limit=4, apply_chat_template=True),
        output=made / "chat.json",
    )
    assert (
        len({path.name for path in (made / "bench").iterdir()} - before) == 1
    )  # not taken from the plain one
    assert chat["settings"]["apply_chat_template"] is True
    assert chat["tasks"]["truthfulqa_mc1_file"]["difference"] == {}


def test_differences_are_paired_and_fall_back_on_resamples_or_nothing() -> None:
    before = Metric("acc", True, 0.5, 0.29, 4, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
    after = Metric("acc", True, 0.75, 0.25, 4, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0})
    found = compare.difference(after, before)
    assert found["value"] == 0.25 and found["stderr"] == pytest.approx(
        0.25
    )  # gaps 0, 0, 0, 1: sd 0.5 / sqrt 4
    bleu = [Metric("bleu", True, value, 0.1, 3, {}, [value, value + 0.1]) for value in (0.2, 0.3)]
    assert compare.difference(bleu[1], bleu[0])["stderr"] == pytest.approx(
        0.0
    )  # they move together
    assert compare.difference(
        Metric("ppl", False, 9.0, None, 3), Metric("ppl", False, 8.0, None, 3)
    ) == {
        "value": 1.0,
        "stderr": None,
    }


def test_domain_sets_are_answered_greedily_and_scored_for_every_adapter(
    tmp_path: Path, made: Path
) -> None:
    file = tmp_path / "town.jsonl"
    rows = [
        {"prompt": "Where is the town?", "reference": "by the river"},
        {"prompt": "What is good?", "references": ["a dog", "the fox"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = Domain(Source.of(file), max_new_tokens=6)
    found = bench(made, [], domains=[domain], output=tmp_path / "bench.json")
    town = found["tasks"]["town"]
    assert [town["metric"], *(row["metric"] for row in town["more"])] == [
        "rougeL",
        "rouge1",
        "rouge2",
        "bleu",
        "f1",
        "exact_match",
    ]
    assert all(set(row["adapters"]) == {"base", "sft", "ppo"} for row in (town, *town["more"]))
    assert bench(made, [], domains=[domain], output=tmp_path / "bench.json") == found


def test_rows_of_a_domain_set_that_do_not_fit_are_counted_or_set_aside(
    tmp_path: Path, made: Path
) -> None:
    file, aside = tmp_path / "town.jsonl", tmp_path / "aside"
    long = [{"id": f"long{i}", "prompt": "where " * 400, "reference": "here"} for i in range(2)]
    rows = [{"id": "a", "prompt": "Where is the town?", "reference": "by the river"}, *long]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"2 of 3 rows cannot be used, the first: prompt 'long0'.*--quarantine"
    ):
        bench(
            made,
            [],
            ["base"],
            domains=[Domain(Source.of(file), max_new_tokens=4)],
            output=tmp_path / "bench.json",
        )
    aside.mkdir()
    domain = Domain(Source.of(file), max_new_tokens=4, quarantine=aside)
    found = bench(made, [], ["base"], domains=[domain], output=tmp_path / "bench.json")
    assert found["tasks"]["town"]["adapters"]["base"]["n"] == 1
    kept = (aside / "town.too-long.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in kept] == ["long0", "long1"]


def test_as_a_stage_it_measures_each_adapter_once_and_a_new_policy_alone(
    tmp_path: Path, tiny_folder: Path, data: dict[str, Path]
) -> None:
    config = BenchConfig(
        tasks=[str(EXAMPLES)], data=[f"{task}={path}" for task, path in data.items()], limit=2
    )
    backbone = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=256,
        adapter=AdapterConfig(r=4, alpha=8),
    )

    def run(*more: Made, config: BenchConfig = config) -> dict[str, str]:
        runtime = Runtime(backbone, rollout="transformers", output=tmp_path)
        stages = [Made("sft", 1), *more, Bench(config)]
        summary = Pipeline(stages, runtime).run(tmp_path / "t")
        return {stage.name: stage.status for stage in summary.stages}

    ppo, dpo = Made("ppo", 2, ("sft",)), Made("dpo", 3, ("sft",))
    assert set(run(ppo).values()) == {"ran"}
    written = json.loads((tmp_path / "t" / "bench.json").read_text())
    assert list(written["adapters"]) == ["base", "sft", "ppo"] and set(written["tasks"]) == set(
        data
    )
    by_command = bench(
        tmp_path / "t",
        find([str(EXAMPLES)], data),
        settings=HarnessSettings(limit=2),
        output=tmp_path / "b.json",
    )
    assert by_command["tasks"] == written["tasks"]
    assert set(run(ppo).values()) == {"reused"}
    # What prefloop bench wrote stays while it is about every adapter of the run, and no longer.
    table = tmp_path / "t" / "bench.json"
    assert table.is_symlink()
    bench(tmp_path / "t", find([str(EXAMPLES)], data), settings=HarnessSettings(limit=3))
    sealed = json.loads((tmp_path / "t" / "artifacts" / "bench" / "bench.json").read_text())
    assert not table.is_symlink() and sealed == written
    run(ppo)
    assert json.loads(table.read_text())["settings"]["limit"] == 3
    ran = {name for name, status in run(ppo, dpo).items() if status == "ran"}
    assert ran == {"dpo", "bench-dpo", "bench"}
    assert table.is_symlink() and "dpo" in json.loads(table.read_text())["adapters"]
    changed = run(ppo, dpo, config=dataclasses.replace(config, limit=1))
    assert {name for name, status in changed.items() if status == "ran"} == {
        f"bench-{s}" for s in ("base", "sft", "ppo", "dpo")
    } | {"bench"}


def test_what_is_no_run_and_what_asks_nothing_is_said(
    made: Path, data: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    task = [
        "--tasks",
        str(EXAMPLES / "hellaswag.yaml"),
        "--data",
        f"hellaswag_file={data['hellaswag_file']}",
    ]
    for arguments, said in (
        ([f"{made}x"], f"is no folder of a run (did you mean '{made}'?)"),
        (
            [f"{made}:ppo"],
            f"is one result of a run: give the run's folder and name it, {made} --adapters ppo",
        ),
    ):
        assert guarded(_main, ["bench", *arguments, *task]) == 2
        assert said in capfd.readouterr().err
    for flag, value in (
        ("--limit", "0"),
        ("--limit", "-3"),
        ("--batch-size", "0"),
        ("--num-fewshot", "-1"),
    ):
        with pytest.raises(SystemExit) as stop:
            guarded(_main, ["bench", str(made), f"{flag}={value}", *task])
        assert (
            stop.value.code == 2
            and f"Error parsing {flag}: expected a whole number" in capfd.readouterr().err
        )
    with pytest.raises(ConfigError, match="limit is 0: give at least 1"):
        HarnessSettings(limit=0)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        Domain(Source.of(made / "town.jsonl"), max_new_tokens=0)


def test_outside_a_checkout_git_has_nothing_to_say(
    made: Path,
    data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    specs = find([str(EXAMPLES / "hellaswag.yaml")], {"hellaswag_file": data["hellaswag_file"]})
    bench(made, specs, ["base"], HarnessSettings(limit=1), output=tmp_path / "bench.json")
    assert "git" not in capfd.readouterr().err


def test_bench_settings_leave_the_key_of_every_other_stage_alone(tmp_path: Path) -> None:
    from prefloop import compose

    plain_config = RLHFConfig(
        data=DataConfig(
            demonstrations=tmp_path / "d", prompts=tmp_path / "p", eval_prompts=tmp_path / "e"
        )
    )
    with_bench = dataclasses.replace(plain_config, bench=BenchConfig(tasks=["hellaswag"]))
    before, after = compose(plain_config), compose(with_bench)
    assert [type(stage) for stage in after] == [*(type(stage) for stage in before), Bench]
    assert before[-1].config == after[-2].config  # type: ignore[attr-defined]
