"""Algorithms beyond the demo's, reward ensembles and reward-only runs, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loop_run import (
    copy_store,
    finish,
    kill_at_step,
    run,
    run_afresh,
    start,
    statuses,
    summary,
    write_config,
)
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished DPO run; others in the same folder reuse its first stages."""
    path = write_config(tmp_path_factory.mktemp("objectives"), tiny_folder)
    run(path, "--algo", "dpo")
    return path


def adapter(config: Path, slot: str) -> dict[str, torch.Tensor]:
    return load_file(
        config.parent / "runs" / "t" / "artifacts" / slot / "adapter_model.safetensors"
    )


def test_cached_reference_gives_the_adapter_of_the_live_one(config: Path) -> None:
    live = adapter(config, "dpo")
    output = run(config, "--algo", "dpo", "--preference.reference", "cached")
    assert "running reference" in output
    for name, tensor in adapter(config, "dpo").items():
        assert torch.allclose(tensor, live[name], atol=1e-5), name
    output = run(config, "--algo", "ipo", "--preference.reference", "cached")
    assert "reused reference" in output and "audit ipo: ipo loss at the reference" in output


@pytest.mark.parametrize("algo", ["kto", "robust", "apo_down", "cpo"])
def test_algorithms_by_name(config: Path, algo: str) -> None:
    output = run(config, "--algo", algo)
    assert statuses(config)["sft"] == "reused" and statuses(config)[algo] == "ran"
    assert f"audit {algo}: weights move" in output
    found = summary(config)
    assert found["results"][algo]["n_responses"] == 24
    assert {"dpo", "ipo"} <= set(
        found["results"]
    ) and "left out" not in output  # theirs had a cached reference
    if algo == "kto":
        assert "audit kto: kto loss at the reference" in output and "up weighing" in output


@pytest.mark.parametrize("algo", ["grpo", "rloo", "reinforce"])
def test_estimators_without_a_critic_by_name(config: Path, algo: str) -> None:
    output = run(
        config, "--algo", algo, "--reward.members", "2", "--ppo.uncertainty-penalty", "0.5"
    )
    assert "FAILED" not in output and "audit " + algo + ": ratio before the first update" in output
    assert statuses(config)[algo] == "ran" and summary(config)["results"][algo]["n_responses"] == 24
    folder = config.parent / "runs" / "t" / "artifacts" / algo
    assert not (folder / "value").exists(), "there is no critic to keep"
    events = [json.loads(line) for line in (config.parent / "runs" / "t" / "events.jsonl").open()]
    steps = [e for e in events if e.get("stage") == algo and "reward_mean" in e]
    assert len(steps) == 4 and all(
        "explained_variance" not in s and s["reward_spread"] > 0 for s in steps
    )
    first = steps[0]
    assert first["score_mean"] < first["reward_mean"], "the members' spread was not subtracted"


@pytest.mark.parametrize(
    ("algo", "flags"),
    [("rloo", ("--ppo.clip-range", "0.3")), ("ppo", ("--ppo.critic", "adapter"))],
)
def test_a_killed_run_without_a_critic_or_with_one_apart_ends_in_the_same_weights(
    config: Path, algo: str, flags: tuple[str, ...]
) -> None:
    run(config, "--algo", algo, *flags)
    elsewhere = config.parent / "killed"
    copy_store(config, elsewhere, without=algo)
    kill_at_step(config, f"{algo} 2/4", "--algo", algo, *flags, "--output", str(elsewhere))
    # A bare interpreter goes on with the critic's run; test_alarm_pipeline.py has one without.
    go_on = run_afresh if algo == "ppo" else run
    output = go_on(config, "--algo", algo, *flags, "--output", str(elsewhere))
    assert "reused reward" in output and f"resuming {algo}" in output
    places = [config.parent / "runs", elsewhere]
    whole, again = (tensors(place / "t" / "artifacts" / algo) for place in places)
    assert whole.keys() == again.keys() and all(
        torch.equal(again[name], tensor) for name, tensor in whole.items()
    )
    assert any(name.startswith("value/adapter") for name in whole) == (algo == "ppo")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a stage has learnt, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_settings_that_cannot_work_are_refused(config: Path) -> None:
    for flags, words in (
        (
            ("--algo", "grpo", "--ppo.samples-per-prompt", "1"),
            "grpo needs ppo.samples_per_prompt of at least 2",
        ),
        (("--algo", "grpo", "--ppo.kl.estimator", "k1"), "k1 as a term of the loss"),
        (
            ("--algo", "ppo", "--ppo.uncertainty-penalty", "0.5"),
            "needs reward.members of at least 2",
        ),
    ):
        code, output = finish(start(config, *flags))
        assert code == 2 and words in output, output


def test_votes_weigh_pairs(config: Path) -> None:
    output = run(config, "--algo", "cdpo", "--preference.weights", "agreement")
    assert "FAILED" not in output and statuses(config)["cdpo"] == "ran"


def thumbs(path: Path, both_kinds: bool) -> Path:
    prompts = [json.loads(line) for line in (path.parent / "train.jsonl").open()]
    rows: list[dict[str, Any]] = []
    for i, prompt in enumerate(prompts):
        kinds = ("up", "down") if both_kinds else (("up", "down")[i % 2],)
        rows += [
            {
                "id": f"{i}-{kind}",
                "prompt": prompt["prompt"],
                "response": {"text": f"answer {i} {kind}"},
                "votes": [{"annotator": "a", "value": kind}],
            }
            for kind in kinds
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_kto_takes_thumbs_whether_they_make_pairs_or_not(tmp_path: Path, tiny_folder: Path) -> None:
    config = write_config(tmp_path, tiny_folder)
    tree = yaml.safe_load(config.read_text())
    tree["label"] = {"source": "file"}
    tree["data"]["comparisons"] = str(thumbs(tmp_path / "thumbs.jsonl", both_kinds=False))
    config.write_text(yaml.safe_dump(tree))
    output = run(config, "--algo", "kto")
    assert (
        "12 thumbs, which form 0 comparisons" in output
        and "6 up weighing 1.000, 6 down weighing 1.000" in output
    )
    tree["data"]["comparisons"] = str(thumbs(tmp_path / "both.jsonl", both_kinds=True))
    config.write_text(yaml.safe_dump(tree))
    assert "12 up weighing 1.000, 12 down weighing 1.000" in run(config, "--algo", "kto")


def test_an_ensemble_is_resumed_member_by_member_and_measured(
    tmp_path: Path, tiny_folder: Path
) -> None:
    hashes = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, tiny_folder)
        pairs = folder / "pairs.jsonl"
        rows = [json.loads(line) for line in (folder / "demonstrations.jsonl").open()]
        pairs.write_text(
            "".join(
                json.dumps(
                    {"prompt": r["prompt"], "chosen": r["response"], "rejected": "No idea at all."}
                )
                + "\n"
                for r in rows
            )
        )
        tree = yaml.safe_load(config.read_text())
        tree |= {"algo": "reward", "label": {"source": "file"}}
        tree["reward"] |= {"members": 2, "holdout": 0.25, "epochs": 2}
        tree["data"] |= {"comparisons": str(pairs), "reward_tests": [str(pairs)]}
        config.write_text(yaml.safe_dump(tree))
        if name == "killed":
            kill_at_step(config, "reward 2/2 2/")
        output = run_afresh(config) if name == "killed" else run(config)
        assert "audit reward: save, load, same scores" in output and "pairs.jsonl" in output
        place = folder / "runs" / "t" / "artifacts" / "reward"
        hashes.append(
            [
                load_file(p)
                for p in (
                    place / "adapter_model.safetensors",
                    place / "member-1" / "adapter_model.safetensors",
                    place / "head.safetensors",
                    place / "member-1" / "head.safetensors",
                )
            ]
        )
        tests = json.loads(
            (folder / "runs" / "t" / "artifacts" / "reward-test" / "tests.json").read_text()
        )["pairs.jsonl"]
        assert (
            tests["pairs"] == 12
            and tests["member_spread"] > 0
            and tests["accuracy_ci"][0] <= tests["accuracy"] <= tests["accuracy_ci"][1]
        )
        assert [s["name"] for s in summary(config)["stages"]] == [
            "sft",
            "label",
            "reward",
            "reward-test",
        ]
        assert (folder / "runs" / "t" / "report.html").is_file()
    for whole, killed in zip(*hashes, strict=True):
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert any(not torch.equal(hashes[0][0][n], hashes[0][1][n]) for n in hashes[0][0]), (
        "members are copies of one another"
    )


def test_a_reward_model_without_sft_starts_from_the_bare_model(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """A fresh adapter's A matrices get no gradient in the first step: the audit knows."""
    config = write_config(tmp_path, tiny_folder)
    rows = [json.loads(line) for line in (tmp_path / "demonstrations.jsonl").open()]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": r["prompt"], "chosen": r["response"], "rejected": "No."}) + "\n"
            for r in rows
        )
    )
    tree = yaml.safe_load(config.read_text())
    tree |= {"algo": "reward", "label": {"source": "file"}}
    tree["data"] = {"comparisons": str(pairs), "reward_tests": [str(pairs)]}
    config.write_text(yaml.safe_dump(tree))
    run(config)
    assert list(statuses(config)) == ["label", "reward", "reward-test"]
