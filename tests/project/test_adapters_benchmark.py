"""benchmarks/adapters.py on a tiny model: every number that it reports, going on after a kill, and
joining calls.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import adapters as benchmark
import pytest
from adapters_data import CONFIG, made, make_tiny, write_slices
from adapters_table import table, write_tables

from prefloop.config.adapters import CARDS
from prefloop.config.load import load_config
from prefloop.data.sources import write_jsonl
from prefloop.records import Message


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Any:
    parsed = benchmark.parsed(["--tiny", "--output", str(tmp_path_factory.mktemp("comparison"))])
    make_tiny(Path(parsed.model))
    write_slices(parsed)
    return parsed


@pytest.mark.parametrize("method", ["lora", "mole", "prefix"])
def test_a_method_is_trained_measured_and_leaves_nothing(options: Any, method: str) -> None:
    found = benchmark.measure(method, options)
    assert found["steps"] == [2, 2] and found["parameters"] > 0 and found["loss"] > 0
    mean, low, high = found["accuracy"]
    assert 0 <= low <= mean <= high <= 1
    assert found["steps_s"] > 0 and found["peak_bytes"] == {}
    assert not (options.output / "work" / method).exists()


def test_slices_are_the_same_for_all_methods_and_do_not_overlap(options: Any) -> None:
    def ids(name: str) -> list[str]:
        lines = (options.output / "data" / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert ids("sft-0") + ids("sft-1") == ids("sft") and len(ids("sft")) == len(ids("dpo")) == 4
    assert not set(ids("sft")) & set(ids("dpo"))


def pairs(path: Path, count: int, first_words: int = 1) -> Path:
    rows = made(count)
    rows[0].prompt[0] = Message("user", "word " * first_words)
    write_jsonl(path, rows)
    return path


def test_slices_of_a_file_leave_long_prompts_out_and_too_few_pairs_are_an_error(
    tmp_path: Path, options: Any
) -> None:
    def given(train: Path, output: str) -> Any:
        words = [
            "--train",
            str(train),
            "--test",
            str(pairs(tmp_path / "test.jsonl", 3)),
            "--output",
            str(tmp_path / output),
        ]
        return benchmark.parsed([*words, "--model", options.model, "--steps", "2", "--batch", "1"])

    long = given(pairs(tmp_path / "train.jsonl", 5, first_words=500), "long")
    write_slices(long)
    rows = [
        json.loads(line)
        for line in (tmp_path / "long" / "data" / "sft.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == ["made-1", "made-2"]
    with pytest.raises(SystemExit, match="3 usable pairs, 4 are needed"):
        write_slices(given(pairs(tmp_path / "few.jsonl", 3), "few"))


def test_rates_are_those_of_the_preset_for_the_method_and_dpo_gets_its_factor(options: Any) -> None:
    lora, vera = (benchmark.settings(method, options) for method in ("lora", "vera"))
    assert vera.sft.optim.learning_rate > lora.sft.optim.learning_rate
    assert vera.sft.batch_size == lora.preference.batch_pairs == 2
    options.dpo_times = 1.0
    plain = benchmark.settings("lora", options)
    options.dpo_times = 10.0
    assert lora.preference.optim.learning_rate == pytest.approx(
        10 * plain.preference.optim.learning_rate
    )


def test_the_example_trains_every_method_for_the_same_steps() -> None:
    config = load_config(CONFIG)
    assert config.preset == "chat" and config.sft.eval_share == 0 and config.sft.patience is None
    assert config.backbone.precision in set.intersection(
        *(set(card.precisions) for card in CARDS.values())
    )


def result(method: str, **more: Any) -> dict[str, Any]:
    full = {
        "accuracy": [0.6, 0.55, 0.65],
        "steps_s": 9.0,
        "stages_s": 12.0,
        "peak_bytes": {"sft": 2**30, "dpo": 3 * 2**29},
    }
    return {"method": method, "parameters": 1000, "loss": 1.5, **full, **more}


def test_the_table_shows_results_failures_and_the_bare_model() -> None:
    rows = [
        {"method": "none", "parameters": 0, "loss": 2.0},
        result("dora"),
        {"method": "oft", "failed": "why"},
    ]
    lines = table(rows).splitlines()[2:]
    assert lines == [
        "| none | 0 | 2.000 | - | - | - | - |",
        "| dora | 1,000 | 1.500 | 60.0 [55.0, 65.0] | 9.0 | 12.0 | 1.50 |",
        "| oft | failed | - | - | - | - | - |",
    ]


def test_calls_join_into_one_table_and_plot(tmp_path: Path) -> None:
    for folder, methods in (("a", ["lora", "dora"]), ("b", ["oft"])):
        (tmp_path / folder).mkdir()
        for method in methods:
            (tmp_path / folder / f"{method}.json").write_text(json.dumps(result(method)))
    benchmark.main(
        ["--join", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "all")]
    )
    assert list(json.loads((tmp_path / "all" / "results.json").read_text())) == [
        "lora",
        "dora",
        "oft",
    ]
    assert "<svg" in (tmp_path / "all" / "adapters.svg").read_text()
    benchmark.main(
        ["--join", str(tmp_path / "all" / "results.json"), "--output", str(tmp_path / "again")]
    )
    assert (tmp_path / "again" / "results.md").read_text() == (
        tmp_path / "all" / "results.md"
    ).read_text()


def test_the_table_in_the_docs_is_that_of_the_kept_results() -> None:
    kept = json.loads(
        (Path(__file__).parents[2] / "benchmarks" / "results" / "adapters.json").read_text()
    )
    assert (
        table(list(kept.values()))
        in (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    )


@pytest.mark.parametrize(
    ("before", "runs"), [(None, 1), (result("dora"), 0), ({"method": "dora", "failed": "why"}, 1)]
)
def test_a_call_runs_what_has_no_result_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any] | None, runs: int
) -> None:
    if before:
        (tmp_path / "dora.json").write_text(json.dumps(before))
    calls: list[list[str]] = []

    def child(call: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(call)
        return subprocess.CompletedProcess(
            call, 0, f"words\nRESULT {json.dumps(result('dora', loss=0.5))}\n", ""
        )

    monkeypatch.setattr(benchmark.subprocess, "run", child)
    words = ["--output", str(tmp_path), "--methods", "dora"]
    benchmark.run_one("dora", benchmark.parsed(words), words)
    assert len(calls) == runs and all(call[2:] == [*words, "--one", "dora"] for call in calls)
    assert json.loads((tmp_path / "dora.json").read_text())["loss"] == (0.5 if runs else 1.5)
    assert len(write_tables(tmp_path, ["dora", "lora"])) == 1
