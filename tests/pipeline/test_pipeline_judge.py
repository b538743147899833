"""The last stages of a run with a language model as the judge: matrix, costs, contamination,
failures.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_endpoint import completion, endpoint_fixture, shown  # noqa: F401
from loop_run import finish, run, start, statuses, summary, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run with PPO and DPO, judged by gold and reward model alone; its first evaluation
    prompt was trained on.
    """
    folder = tmp_path_factory.mktemp("judged")
    config = write_config(folder, tiny_folder)
    evaluation, training = folder / "eval.jsonl", folder / "train.jsonl"
    seen = json.loads(training.read_text().splitlines()[0]) | {"id": "seen-before"}
    evaluation.write_text(json.dumps(seen) + "\n" + evaluation.read_text())
    run(config)
    run(config, "--algo", "dpo")
    return config


def longer_unless_told(number: int, body: dict) -> tuple:
    a, b = shown(body)
    return completion(f"[[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]", 100, 5)


def test_the_matrix_has_all_policies_against_each_other(config: Path) -> None:
    found = summary(config)
    matrix = found["matrix"]
    assert matrix["judge"] == "gold scorer" and matrix["policies"] == ["sft", "ppo", "dpo"]
    for i in range(3):
        assert matrix["rate"][i][i] is None
        for j in range(3):
            if i != j:
                assert matrix["rate"][i][j] == pytest.approx(1 - matrix["rate"][j][i])
                assert matrix["low"][i][j] <= matrix["rate"][i][j] <= matrix["high"][i][j]
    for policy in ("ppo", "dpo"):
        row = found["results"][policy]
        win, level = row["wins"]["gold"], row["at_equal_length"]["win"]
        rate = matrix["rate"][matrix["policies"].index(policy)][0]
        assert rate == pytest.approx(win["value"])
        assert 0 <= row["sign_test_p"] <= 1 and level["low"] <= level["value"] <= level["high"]
    assert matrix["elo"]["sft"]["value"] == 1000 and set(matrix["elo"]) == {"sft", "ppo", "dpo"}


def test_an_evaluation_prompt_that_was_trained_on_is_counted_and_named(config: Path) -> None:
    found = summary(config)["contamination"]
    assert (found["count"], found["alike"]) == (1, 0)
    [seen] = found["examples"]
    assert (seen["id"], seen["kind"]) == ("seen-before", "prompt") and seen["text"] == seen[
        "train_text"
    ] != ""
    assert "seen-before" in run(config, "--algo", "dpo", "--evaluate.resamples", "100")


def test_a_judge_behind_an_endpoint_is_asked_once_and_told_what_it_cost(
    config: Path, endpoint
) -> None:
    server = endpoint(longer_unless_told)
    flags = ["--algo", "dpo", "--evaluate.judge", f"openai:tiny@{server.url}"]
    flags += ["--evaluate.asking.price-prompt", "1", "--evaluate.asking.price-completion", "2"]
    run(config, *flags)
    found = summary(config)
    assert {name: s for name, s in statuses(config).items() if s == "ran"} == {"judge": "ran"}
    assert (
        found["matrix"]["judge"] == "openai:tiny"
        and found["results"]["ppo"]["judge"] == "openai:tiny"
    )
    judging = found["judging"]
    used = judging["used"]
    assert used["requests"] == judging["asked"] == len(server.bodies) > 0 and judging["failed"] == 0
    assert used["cost"] == pytest.approx(len(server.bodies) * (100 + 2 * 5) / 1e6)
    assert judging["position_bias"]["value"] == pytest.approx(0.5)
    assert "judge" not in found["results"]["sft"]["wins"]
    page = (config.parent / "runs" / "t" / "report.html").read_text(encoding="utf-8")
    assert "openai:tiny" in page
    asked = len(server.bodies)
    run(config, *flags, "--evaluate.resamples", "150")  # another key, the same questions
    assert len(server.bodies) == asked and summary(config)["judging"]["cached"] >= asked


def test_many_failed_comparisons_stop_the_run_and_few_are_left_out(config: Path, endpoint) -> None:
    pairs: dict[frozenset[str], int] = {}

    def every_second_pair(number: int, body: dict) -> tuple:
        place = pairs.setdefault(
            frozenset(shown(body)), len(pairs)
        )  # in whatever order questions come, both of a pair
        return (422, {}, "no") if place % 2 else longer_unless_told(number, body)

    refused = endpoint(every_second_pair)
    flags = ["--algo", "dpo", "--evaluate.asking.max-retries", "0", "--evaluate.judge"]
    code, output = finish(start(config, *flags, f"openai:half@{refused.url}"))
    assert code == 2 and "comparisons failed, over 5%" in " ".join(output.split())
    once = endpoint(
        lambda number, body: (422, {}, "no") if number == 0 else longer_unless_told(number, body)
    )
    output = run(config, *flags, f"openai:most@{once.url}")
    assert "1 of " in output and "comparisons failed and are left out" in " ".join(output.split())
    assert summary(config)["judging"]["failed"] == 1


def test_a_judge_that_cannot_be_is_refused_before_anything_runs(config: Path) -> None:
    code, output = finish(start(config, "--evaluate.judge", "gpt-9"))
    assert code == 2 and "unknown form. A judge is one of" in output and "running" not in output
