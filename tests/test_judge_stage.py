"""The stage ``judge``: what it puts into a run's summary, whichever judge it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge_endpoint import completion, endpoint_fixture, prefers_longer  # noqa: F401
from judge_stage import compared

from prefloop.config import JudgeConfig
from prefloop.judging.show import _cost
from prefloop.judging.usage import Usage
from prefloop.report.results import judging
from prefloop.report.schema import Summary
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


def test_the_report_tells_what_all_answers_cost_and_what_of_it_now(runtime: Runtime, endpoint) -> None:
    server = endpoint(lambda number, body: completion(prefers_longer(number, body), 100, 5))
    asking = JudgeConfig(price_prompt=10.0, price_completion=20.0)
    options: dict[str, Any] = {"judge": f"openai:m@{server.url}", "asking": asking}
    compared(runtime, {name: texts[:3] for name, texts in TEXTS.items()}, **options)
    before = len(server.bodies)
    told = dict(judging(Summary(judging=compared(runtime, TEXTS, **options).metrics["judging"])))
    now, total = len(server.bodies) - before, len(server.bodies)
    assert now and told["requests"] == str(now)
    assert (
        told["tokens"]
        == f"{100 * total:,} read, {5 * total} written; of which now {100 * now:,} read, {5 * now} written"
    )
    assert told["cost"] == f"{0.0011 * total:.4g}; of which now {0.0011 * now:.4g}"


def test_tokens_that_an_endpoint_does_not_report_are_no_zero_cost(runtime: Runtime, endpoint) -> None:
    asking = JudgeConfig(price_prompt=10.0, price_completion=20.0)

    def told(script: Any, name: str) -> dict[str, str]:
        judge = f"openai:{name}@{endpoint(script).url}"
        return dict(judging(Summary(judging=compared(runtime, TEXTS, judge=judge, asking=asking).metrics["judging"])))

    silent = told(prefers_longer, "silent")
    assert silent["tokens"] == "not reported" and "cost" not in silent
    some = told(lambda n, body: completion(prefers_longer(n, body), 100, 5) if n == 0 else prefers_longer(n, body), "m")
    assert (some["tokens"], some["cost"]) == ("at least 100 read, 5 written", "at least 0.0011")


def test_the_terminal_calls_unreported_tokens_so() -> None:
    assert "tokens not reported" in _cost(Usage(3, unreported=3), 3, 0, 0)
    assert "at least 10 tokens read and 2 written; cost at least 0.5000" in _cost(Usage(3, 0, 10, 2, 1, 0.5), 3, 0, 0)
    assert "; 10 tokens read and 2 written; cost 0.5000" in _cost(Usage(3, 0, 10, 2, 0, 0.5), 3, 0, 0)
