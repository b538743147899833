"""Rewards from functions and servers in runs as a user starts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_endpoint import Endpoint, endpoint_fixture  # noqa: F401
from loop_run import finish, run, start, statuses, write_config
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
SAMPLES = 8  # responses a rollout of the tiny configuration


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with a reward model; others in the same folder reuse it."""
    path = write_config(tmp_path_factory.mktemp("rewards"), tiny_folder)
    run(path, "--algo", "reward")
    return path


def last_steps(config: Path, count: int = 4) -> list[dict[str, Any]]:
    """The newest step events of rloo."""
    events = [json.loads(line) for line in (config.parent / "runs" / "t" / "events.jsonl").open()]
    return [e for e in events if e.get("stage") == "rloo" and e.get("event") == "step"][-count:]


def adapter(config: Path) -> dict[str, torch.Tensor]:
    return load_file(
        config.parent / "runs" / "t" / "artifacts" / "rloo" / "adapter_model.safetensors"
    )


def letters(text: str) -> float:
    return sum(map(ord, text)) % 64 / 64


def test_a_reward_function_replaces_the_reward_model(config: Path) -> None:
    source = config.parent / "letters.py"
    source.write_text(
        "def score(prompt, response):\n    return sum(map(ord, response)) % 64 / 64\n"
    )
    flags = (
        "--algo",
        "rloo",
        "--ppo.reward-model-weight",
        "0",
        "--ppo.rewards",
        f"{source}:score",
        "1",
    )
    run(config, *flags)
    steps = last_steps(config)
    assert all(step["rewards"].keys() == {"score"} for step in steps)
    alone = steps[0]["reward_mean"]
    assert 0 < alone < 1 and alone == pytest.approx(round(alone * 64 * SAMPLES) / (64 * SAMPLES)), (
        "values in 64ths"
    )
    source.write_text("def score(prompt, response):\n    return float('nan')\n")
    code, output = finish(start(config, *flags))
    assert (
        code == 2
        and "letters.py:score on prompt" in output
        and "nan" in output
        and "Traceback" not in output
    )


def test_model_function_and_server_add_up_and_a_bad_score_costs_nothing_but_its_rollout(
    config: Path,
    endpoint: Callable[[Callable[[int, Any], Any]], Endpoint],
) -> None:
    bad_at: list[int] = []

    def script(number: int, body: Any) -> tuple[int, dict[str, str], str]:
        values = [letters(item["response"]) for item in body["items"]]
        return (
            200,
            {},
            json.dumps({"scores": [float("nan"), *values[1:]] if number in bad_at else values}),
        )

    server = endpoint(script)
    name = f"127.0.0.1:{server.server.server_port}/v1/score"
    source = config.parent / "words.py"
    source.write_text("def words(prompt, response):\n    return len(response.split()) / 8\n")

    def flags(query: str = "") -> tuple[str, ...]:
        rewards = (f"{source}:words", "0.5", f"{server.url}/score{query}", "-2")
        return ("--algo", "rloo", "--ppo.rewards", *rewards)

    run(config, *flags())
    steps = last_steps(config)
    assert [len(body["items"]) for body in server.bodies] == [SAMPLES] * len(steps)
    for step, body in zip(steps, server.bodies, strict=True):
        parts = step["rewards"]
        assert parts.keys() == {"reward_model", "words", name}
        assert step["reward_mean"] == pytest.approx(
            parts["reward_model"] + 0.5 * parts["words"] - 2 * parts[name], abs=1e-5
        )
        texts = [item["response"] for item in body["items"]]
        assert parts[name] == pytest.approx(sum(map(letters, texts)) / SAMPLES, abs=1e-6)
        assert parts["words"] == pytest.approx(
            sum(len(text.split()) / 8 for text in texts) / SAMPLES, abs=1e-6
        )
    whole = adapter(config)

    bad_at.append(len(server.bodies) + 2)  # the third rollout of the next run
    code, output = finish(start(config, *flags("?v=2")))
    first = server.bodies[bad_at[0]]["items"][0]["id"]
    assert code == 2 and "Traceback" not in output
    assert (
        f"reward '{name}' on prompt '{first.rpartition('/')[0]}', response {first}: found nan"
        in output
    )
    kept = [
        p.name
        for p in (config.parent / "runs" / ".store" / "work").glob("rloo-*/checkpoints/step-*")
    ]
    assert sorted(kept) == ["step-000002", "step-000004"], (
        "two rollouts of two optimizer steps were learnt from"
    )
    output = run(config, *flags("?v=2"))
    assert "resuming rloo" in output and statuses(config)["rloo"] == "resumed"
    assert len(server.bodies) == len(steps) + 3 + 2
    again = adapter(config)
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
