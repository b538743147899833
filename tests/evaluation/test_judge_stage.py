"""The stage ``judge``: what it puts into a run's summary, whichever judge it asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_endpoint import completion, endpoint_fixture, prefers_longer  # noqa: F401
from judge_stage import compared, evaluated

from prefloop.artifacts.results import Estimate
from prefloop.config import DataConfig, EvaluateConfig, JudgeConfig
from prefloop.evaluation.compare import judge_answers
from prefloop.evaluation.judges.assessor import Pair
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.usage import Usage
from prefloop.evaluation.judges.verdict import Verdict
from prefloop.evaluation.show import _cost
from prefloop.models.lookup import WHEELS
from prefloop.pipeline.stages.compare import Compare
from prefloop.pipeline.stages.evaluate import Evaluate
from prefloop.records import Message, Prompt
from prefloop.report.results import judging
from prefloop.report.summary import Summary
from prefloop.runs.runtime import Runtime
from prefloop.stats import length_control as length
from prefloop.stats.length_control import length_controlled_leaderboard, length_controlled_win_rate

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
    (tmp_path / "gold.py").write_text(
        "def score(prompt, response):\n    return float(len(response))\n"
    )
    return f"{tmp_path / 'gold.py'}:score"


def test_elo_stands_on_sft_under_every_judge_with_as_many_resamples(
    runtime: Runtime, gold: str, endpoint
) -> None:
    server = endpoint(prefers_longer)
    by_gold = evaluated(runtime, TEXTS, gold, resamples=150).matrix.elo
    judge = f"openai:m@{server.url}"
    by_model = evaluated(runtime, TEXTS, gold, resamples=150, judge=judge).matrix.elo
    assert by_gold["sft"] == Estimate(1000, 1000, 1000) and set(by_model) == set(TEXTS)
    for name, rated in by_model.items():  # the judge says what gold says
        assert dataclasses.astuple(rated) == pytest.approx(dataclasses.astuple(by_gold[name]))


def test_the_bare_models_answers_move_no_figure_of_a_policy(
    runtime: Runtime, gold: str, endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the bare model finds hard, and what a judge cannot read of it, is no property of the
    prompts.
    """
    monkeypatch.setattr(length, "FEWEST", 2)
    bare = {"base": ["a b c d e", "a b c", "a b", "a b c", "one", "a a a a a a"], **TEXTS}

    def answer(number: int, body: dict[str, Any]) -> Any:
        odd = "a a a a a a" in str(body)
        return (400, {"error": {"message": "unreadable"}}) if odd else prefers_longer(number, body)

    asked = {"judge": f"openai:m@{endpoint(answer).url}"}
    for options in ({}, asked):
        with_it, without = (
            evaluated(runtime, texts, gold, **options).results for texts in (bare, TEXTS)
        )
        assert all(with_it[name] == without[name] for name in TEXTS)
        assert (with_it["base"].win("gold").value or 0) > 0.5
        assert with_it["base"].at_equal_length.judge
    assert with_it["base"].failed == 1


def test_the_report_tells_what_all_answers_cost_and_what_of_it_now(
    runtime: Runtime, endpoint
) -> None:
    server = endpoint(lambda number, body: completion(prefers_longer(number, body), 100, 5))
    asking = JudgeConfig(price_prompt=10.0, price_completion=20.0)
    options: dict[str, Any] = {"judge": f"openai:m@{server.url}", "asking": asking}
    compared(runtime, {name: texts[:3] for name, texts in TEXTS.items()}, **options)
    before = len(server.bodies)
    told = dict(judging(Summary(judging=evaluated(runtime, TEXTS, **options).judging)))
    now, total = len(server.bodies) - before, len(server.bodies)
    assert now and told["requests"] == str(now)
    assert (
        told["tokens"]
        == f"{100 * total:,} read, {5 * total} written; of which now {100 * now:,} read, {5 * now}"
        " written"
    )
    assert told["cost"] == f"{0.0011 * total:.4g}; of which now {0.0011 * now:.4g}"


def test_tokens_that_an_endpoint_does_not_report_are_no_zero_cost(
    runtime: Runtime, endpoint
) -> None:
    asking = JudgeConfig(price_prompt=10.0, price_completion=20.0)

    def told(script: Any, name: str) -> dict[str, str]:
        judge = f"openai:{name}@{endpoint(script).url}"
        return dict(
            judging(Summary(judging=evaluated(runtime, TEXTS, judge=judge, asking=asking).judging))
        )

    silent = told(prefers_longer, "silent")
    assert silent["tokens"] == "not reported" and "cost" not in silent
    some = told(
        lambda n, body: (
            completion(prefers_longer(n, body), 100, 5) if n == 0 else prefers_longer(n, body)
        ),
        "m",
    )
    assert (some["tokens"], some["cost"]) == ("at least 100 read, 5 written", "at least 0.0011")


def test_the_terminal_calls_unreported_tokens_so() -> None:
    assert "tokens not reported" in _cost(Usage(3, unreported=3), Usage(), 3, 0, 0)
    assert "at least 10 tokens read and 2 written; cost at least 0.5000" in _cost(
        Usage(3, 0, 10, 2, 1, 0.5), Usage(), 3, 0, 0
    )
    assert "; 10 tokens read and 2 written; cost 0.5000" in _cost(
        Usage(3, 0, 10, 2, 0, 0.5), Usage(), 3, 0, 0
    )


def against_sft() -> tuple[dict[str, Any], dict[str, Any]]:
    """By policy and prompt: wins of the longer text, and leads in characters."""
    sides = {p: list(enumerate(zip(TEXTS[p], TEXTS["sft"], strict=True))) for p in ("ppo", "dpo")}
    wins = {
        p: {f"p{i}": [0.5 + 0.5 * np.sign(len(a) - len(b))] for i, (a, b) in of}
        for p, of in sides.items()
    }
    leads = {p: {f"p{i}": [float(len(a) - len(b))] for i, (a, b) in of} for p, of in sides.items()}
    return wins, leads


def test_two_policies_at_equal_length_are_measured_with_the_difficulty_of_the_prompts(
    runtime: Runtime, gold: str, endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = f"openai:m@{endpoint(prefers_longer).url}"
    level = evaluated(runtime, TEXTS, gold, resamples=99).results["ppo"].at_equal_length
    assert level.win == Estimate() and level.unknown.startswith("6 prompts are too few")
    monkeypatch.setattr(length, "FEWEST", 6)
    for options in ({}, {"judge": judge}):
        results = evaluated(runtime, TEXTS, gold, **options).results
        for policy, rate in length_controlled_leaderboard(*against_sft(), resamples=100).items():
            win = results[policy].at_equal_length.win
            assert win.value == pytest.approx(rate.rate) and rate.difficulty is not None
            assert win.low == pytest.approx(rate.low)
    one = evaluated(runtime, {"sft": TEXTS["sft"], "ppo": TEXTS["ppo"]}, gold).results["ppo"]
    alone = length_controlled_win_rate(*(of["ppo"] for of in against_sft()))
    assert one.at_equal_length.win.value == pytest.approx(alone.rate)


def test_difficulties_come_from_the_duels_with_the_baseline_on_the_prompts_that_all_of_them_have() -> (  # noqa: E501
    None
):
    class Longer:
        name, symmetric = "longer", True

        def compare_many(self, items: Sequence[Pair], on_verdict: Any = None) -> list[Verdict]:
            found = [
                (
                    Verdict.failure("no")
                    if a == "a b c d"
                    else Verdict(0.5 + 0.5 * np.sign(len(a) - len(b)))
                )
                for _, a, b in items
            ]
            for index, verdict in enumerate(found):
                on_verdict(index, verdict)
            return found

    texts = {"x": ["a b c d", *TEXTS["dpo"][1:]], "y": TEXTS["ppo"], "base": TEXTS["sft"]}
    sides = {
        name: {
            f"p{i}": (Prompt(f"p{i}", [Message("user", f"Question {i}?")]), [text])
            for i, text in enumerate(of)
        }
        for name, of in texts.items()
    }
    for order, options in ((["x", "y", "base"], {}), (["x", "y", "base"], {"anchor": "base"})):
        found = judge_answers(
            {name: sides[name] for name in order}, Longer(), VerdictCache(), **options
        )
        rates = {(duel.a, duel.b): duel.length_controlled for duel in found.duels}
        assert rates["y", "base"].difficulty is not None and rates["y", "base"].n_prompts == 5, (
            "x has no verdict on p0"
        )
        assert all(rate.difficulty is None for (_, b), rate in rates.items() if b != "base")


def test_a_model_from_a_wheel_is_unpacked_into_the_runs_store_and_not_to_check_the_settings(
    runtime: Runtime, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "eval.jsonl").write_text('{"prompt": "Why?"}\n', encoding="utf-8")
    unpacked: list[Path] = []
    monkeypatch.setattr(
        "prefloop.evaluation.judges.local.resolve",
        lambda name, cache: unpacked.append(cache) or tiny_folder,
    )
    name = next(iter(WHEELS))
    config = EvaluateConfig(judge=f"local:{name}")
    Evaluate(config, data=DataConfig(eval_prompts=tmp_path / "eval.jsonl")).preflight()
    assert not unpacked
    assert (
        Compare(["sft", "ppo"], config, None)
        .identity(runtime)["judge"]
        .startswith(f"local:{name}:")
    )
    assert set(unpacked) == {runtime.store.root / "models"}


def test_a_result_without_a_failed_pair_says_how_it_is_asked_again_and_so_it_is(
    runtime: Runtime, endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    server = endpoint(
        lambda number, body: (422, {}, "no") if number == 0 else prefers_longer(number, body)
    )
    texts = {policy: 2 * each for policy, each in TEXTS.items()}
    options: dict[str, Any] = {
        "judge": f"openai:m@{server.url}",
        "asking": JudgeConfig(max_retries=0),
    }
    assert evaluated(runtime, texts, **options).judging.failed == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "kept without them. To ask them again, and nothing else, run with another"
        " --evaluate.resamples" in said
    )
    asked = len(server.bodies)
    assert compared(runtime, texts, **options).status == "reused" and len(server.bodies) == asked
    again = compared(runtime, texts, resamples=101, **options)
    assert again.metrics["judging"]["failed"] == 0 and len(server.bodies) == asked + 1
