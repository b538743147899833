"""What the tests of ``prefloop bench`` run: the example tasks on made-up rows, and a run to
measure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

EXAMPLES = Path(__file__).parents[1] / "examples" / "bench"


@pytest.fixture(scope="module", name="data")
def data_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows as HellaSwag and TruthfulQA have them, made up."""
    folder = tmp_path_factory.mktemp("data")
    swag, truth = folder / "swag.jsonl", folder / "truth.jsonl"
    rows: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    for i in range(10):
        endings = [
            f"goes to the river {i} times.",
            "[header] waits [title] for the weather.",
            f"jumps  over {i} dogs.",
            "asks a question",
        ]
        rows.append(
            {
                "activity_label": "Learning",
                "ctx_a": f"A fox number {i} is shown.",
                "ctx_b": "the fox",
                "endings": endings,
                "label": i % 4,
            }
        )
        answers = {
            f"It is number {i}": int(i % 3 != 0),
            "It is the river": 0,
            f"Nobody knows {i}": int(i % 3 == 0),
        }
        questions.append({"question": f"What is the town number {i}?", "mc1_targets": answers})
    swag.write_text("".join(json.dumps(row) + "\n" for row in rows))
    truth.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return {"hellaswag_file": swag, "truthfulqa_mc1_file": truth}


@pytest.fixture(scope="module", name="made")
def made_fixture(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with sft and ppo on a tiny model."""
    return make_run(tmp_path_factory.mktemp("runs"), "t", tiny_folder, slots=("sft", "ppo"))
