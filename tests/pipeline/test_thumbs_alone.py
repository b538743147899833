"""Which runs train a reward model, and what a comparison says without one: thumbs that form no
pairs, judges that need none.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from loop_run import finish, run, start, statuses, summary, write_config

from prefloop.config import DataConfig, EvaluateConfig, GenerationConfig, LabelConfig, RLHFConfig
from prefloop.config.algorithms import PAIR, ROLLOUTS, reward_model
from prefloop.pipeline.algorithms import ALGORITHMS
from prefloop.pipeline.stages.evaluate import Evaluate
from prefloop.training.kto import balanced, one_sided

ANSWERS = (
    "It rains in spring.",
    "The river is long.",
    "Bread is baked.",
    "Boats float.",
    "Bees fly.",
    "Snow is cold.",
)


def thumbs(path: Path, *labels: bool) -> Path:
    """Rows as TRL's KTOTrainer takes them, a prompt each: no pair can be made of them."""
    rows = [
        {"prompt": f"Say {i}.", "completion": ANSWERS[i % len(ANSWERS)], "label": label}
        for i, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_thumbs(folder: Path, model: Path, *labels: bool, **changes: Any) -> Path:
    config = write_config(folder, model, gold=None, label={"source": "file"}, algo="kto")
    tree = yaml.safe_load(config.read_text())
    tree["data"] |= {"comparisons": str(thumbs(folder / "thumbs.jsonl", *labels)), "eval_limit": 4}
    config.write_text(yaml.safe_dump(tree | changes))
    return config


@pytest.mark.slow
def test_kto_on_thumbs_that_form_no_pairs_trains_and_invents_no_win_rate(
    tmp_path: Path, tiny_folder: Path
) -> None:
    config = on_thumbs(tmp_path, tiny_folder, *[True] * 6)
    output = run(config)
    assert list(statuses(config)) == ["sft", "label", "kto", "respond-sft", "respond-kto", "judge"]
    assert "6 thumbs, which form 0 comparisons" in output
    assert "no reward model is trained: it learns from pairs, and the thumbs form none" in output
    assert "all 6 thumbs are up" in output and "kto loss at the reference: 0.500000" in output
    assert "no judge, gold scorer or reward model compares the policies" in output
    found = summary(config)["results"]["kto"]
    assert "value" in found["kl"] and found["length_mean"] > 0 and found["n_responses"] == 8
    assert not found["wins"] and not {"reward_mean", "gold", "at_equal_length"} & set(found)
    assert "matrix" not in summary(config) and not summary(config)["control"]
    page = (tmp_path / "runs" / "t" / "report.html").read_text(encoding="utf-8")
    assert "<h1>There is no judge in this run. Nothing says which policy is better; KTO is" in page
    assert "KTO: all 6 thumbs are up" in page

    function = tmp_path / "judge.py"
    function.write_text("def longer(prompt, response):\n    return float(len(response))\n")
    output = run(config, "--evaluate.judge", f"{function}:longer")
    assert statuses(config)["kto"] == "reused" and "reward" not in statuses(config)
    assert (
        "kto learns without a reward model, and none is trained: policies are judged by" in output
    )
    judged = summary(config)["results"]["kto"]
    assert set(judged["wins"]) == {"judge"} and 0 <= judged["wins"]["judge"]["value"] <= 1

    code, output = finish(start(config, "--algo", "dpo"))
    assert (
        code == 2
        and "'thumbs.jsonl' holds thumbs that form no pairs" in output
        and "--algo kto" in output
    )
    assert "Traceback" not in output


@pytest.mark.slow
def test_greedy_answers_are_compared_and_temperature_0_never_reaches_training(
    tmp_path: Path, tiny_folder: Path
) -> None:
    config = on_thumbs(tmp_path, tiny_folder, True, False, True, False)
    code, output = finish(start(config, "--generation.temperature", "0"))
    assert (
        code == 2
        and "error: generation.temperature is 0, and kto divides log-probs by it" in output
    )
    assert "evaluate.temperature: 0" in output and "running" not in output
    output = run(config, "--evaluate.temperature", "0", "--gold", f"{write_gold(tmp_path)}:longer")
    assert (
        "greedy answers to a prompt are all the same: 1 is taken instead of evaluate.samples 2"
        in output
    )
    found = summary(config)
    kto = found["results"]["kto"]
    assert kto["n_responses"] == 4 and "kl" not in kto
    assert 0 <= kto["wins"]["gold"]["value"] <= 1 and not found["control"]
    assert "respond-sft-again" not in statuses(config)


def write_gold(folder: Path) -> Path:
    path = folder / "gold.py"
    path.write_text("def longer(prompt, response):\n    return float(len(response))\n")
    return path


def test_a_reward_model_is_trained_where_something_needs_it() -> None:
    file = LabelConfig(source="file")
    assert all(
        reward_model(RLHFConfig(algo=algo, gold="g.py:f")) == "needed"
        for algo in (*ROLLOUTS, "reward")
    )
    for algo in (*PAIR, "kto"):
        assert algo in ALGORITHMS
        assert reward_model(RLHFConfig(algo=algo, label=file)) == "judge"
        assert reward_model(RLHFConfig(algo=algo, gold="g.py:f", label=file)) == "none"
        assert (
            reward_model(RLHFConfig(algo=algo, evaluate=EvaluateConfig(judge="j.py:f"), label=file))
            == "none"
        )
        assert reward_model(RLHFConfig(algo=algo, gold="g.py:f")) == "judge", (
            "the next round chooses pairs by it"
        )
        assert (
            reward_model(RLHFConfig(algo=algo, evaluate=EvaluateConfig(reward_model="never")))
            == "none"
        )
        always = EvaluateConfig(judge="j.py:f", reward_model="always")
        assert reward_model(RLHFConfig(algo=algo, evaluate=always, label=file)) == "needed"
        assert reward_model(RLHFConfig(algo=algo, gold="g.py:f", rounds=2)) == "needed"
        tests = DataConfig(reward_tests=[Path("pairs.jsonl")])
        assert (
            reward_model(RLHFConfig(algo=algo, gold="g.py:f", data=tests, label=file)) == "needed"
        )


def test_thumbs_of_one_kind_weigh_1_and_it_is_said_what_they_mean() -> None:
    assert balanced(3, 0) == balanced(0, 3) == (1.0, 1.0) and balanced(1, 3) == (2.0, 2 / 3)
    assert one_sided(2, 1) == ""
    assert "all 3 thumbs are up" in one_sided(3, 0) and "nothing tells what is bad" in one_sided(
        3, 0
    )
    assert "all 3 thumbs are down" in one_sided(0, 3) and "what to write instead" in one_sided(0, 3)


def test_greedy_by_the_runs_own_temperature_is_greedy_too(tmp_path: Path) -> None:
    runtime = SimpleNamespace(generation=GenerationConfig(temperature=0.0))
    fake = SimpleNamespace(runtime=runtime, policies=list, has=lambda slot: True)
    _, respond, _ = Evaluate(
        EvaluateConfig(samples=4), gold=f"{write_gold(tmp_path)}:longer"
    ).expand(fake)
    assert respond.parts()["samples"] == 1 and respond.name == "respond-sft"
