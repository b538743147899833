"""benchmarks/planner.py runs each stage's own steps, and goes on where it was cut short."""

from __future__ import annotations

import json
from pathlib import Path

import planner
import pytest
from loop_run import ROOT


def test_a_case_runs_and_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    output = tmp_path / "planner.json"
    words = [
        "--tiny",
        "--only",
        "tiny-dpo-fp32-none",
        "--models",
        str(tmp_path),
        "--output",
        str(output),
    ]
    (found,) = planner.main(words)
    assert "failed" not in found, found
    assert (
        found["layers_fused"] and found["moment"] in ("train", "choose") and found["predicted"] > 0
    )
    written = output.read_text()
    monkeypatch.setattr(planner.subprocess, "run", lambda *_, **__: pytest.fail("ran again"))
    assert planner.main(words) == [found] == json.loads(written)["results"]


def test_the_quick_cases_come_first_and_there_are_twelve_of_every_kind() -> None:
    sizes = [["smollm2", "1.5b", "7b"].index(case.shape) for case in planner.CASES]
    assert sizes == sorted(sizes) and len(sizes) >= 12
    assert {case.stage for case in planner.CASES} == {"sft", "dpo", "reward", "ppo"}
    assert {case.precision for case in planner.CASES} == {"nf4", "bf16"}
