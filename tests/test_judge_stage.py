"""The stage ``judge``: what it puts into a run's summary, whichever judge it asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from judge_endpoint import completion, endpoint_fixture, prefers_longer  # noqa: F401
from judge_stage import compared

from prefloop.runtime import Runtime

TEXTS = {
    "sft": ["one two", "a", "a b c d", "a", "one two three", "a b"],
    "ppo": ["one two three", "a b", "a", "a b", "one", "a b c"],
    "dpo": ["one", "a b c", "a b", "a b c", "one two", "a"],
}


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(output=tmp_path)


@pytest.fixture
def gold(tmp_path: Path) -> str:
    (tmp_path / "gold.py").write_text("def score(prompt, response):\n    return float(len(response))\n")
    return f"{tmp_path / 'gold.py'}:score"


def test_elo_stands_on_sft_under_every_judge_with_as_many_resamples(runtime: Runtime, gold: str, endpoint) -> None:
    server = endpoint(prefers_longer)
    by_gold = compared(runtime, TEXTS, gold, resamples=150).metrics["matrix"]["elo"]
    by_model = compared(runtime, TEXTS, gold, resamples=150, judge=f"openai:m@{server.url}").metrics["matrix"]["elo"]
    assert by_gold["sft"] == {"rating": 1000, "low": 1000, "high": 1000}
    assert by_model == {name: pytest.approx(rated) for name, rated in by_gold.items()}, "the judge says what gold says"
