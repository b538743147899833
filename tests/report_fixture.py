"""A run folder as the pipeline leaves it, with made-up numbers: the proxy keeps rising, gold turns
over.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

STEPS = 60


def estimate(
    value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, float | None]:
    """A number and its interval as ``summary.json`` holds them."""
    return {"value": value, "low": low, "high": high}


def level(judge: str, value: float, low: float | None = None, high: float | None = None) -> Any:
    """What is added to a policy's row for its win rate at equal length."""
    return {"at_equal_length": {"judge": judge, "win": estimate(value, low, high)}}


def without_gold(data: dict[str, Any]) -> dict[str, Any]:
    """The same summary of a run without a gold scorer."""
    for row in data["results"].values():
        row.pop("gold")
        row["wins"].pop("gold")
    data["control"].pop("gold")
    return data


def summary() -> dict[str, Any]:
    """A complete ``summary.json``."""
    stages = [
        ("sft", "reused", 0.4, 71.2),
        ("sample", "reused", 0.2, 48.9),
        ("label", "reused", 0.1, 3.2),
        ("reward", "resumed", 62.8, 31.0),
        ("dpo", "ran", 84.1, 0.0),
        ("ppo", "ran", 318.6, 0.0),
        ("evaluate", "ran", 46.1, 0.0),
    ]
    audit = [
        "one BOS: ok (64 of 64 rows)",
        "EOS inside the loss: ok",
        "dropout off while scoring: ok",
        "policy = reference at step 0: ok (KL 0.0e+00 nats)",
        "trainable parameters: 1,843,200 in 210 tensors",
    ]
    scalars = {
        "sft": {"loss": 1.9312},
        "reward": {"loss": 0.5534, "accuracy": 0.711},
        "dpo": {"loss": 0.4417, "margin": 1.92},
        "ppo": {"reward_mean": 2.31, "kl": 21.7},
    }
    counts = {"n_prompts": 80, "n_responses": 320}
    return {
        "run": "demo",
        "algo": "ppo",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "started": "2026-11-21T22:00:00Z",
        "seconds": 512.3,
        "command": "pipelines/rlhf.py --config examples/demo.yaml --algo ppo --ppo.kl.coef 0.02",
        "stages": [
            {
                "name": name,
                "key": f"{i}f2a91c0" * 8,
                "status": status,
                "seconds": seconds,
                "saved_seconds": saved,
                "metrics": scalars.get(name, {}) | ({"audit": audit} if name in scalars else {}),
            }
            for i, (name, status, seconds, saved) in enumerate(stages)
        ],
        "results": {
            "sft": {
                "gold": estimate(0.522, 0.498, 0.546),
                "wins": {"gold": estimate(0.5), "reward": estimate(0.5)},
                "kl": estimate(0.0, 0, 0),
                "reward_mean": 0.0,
                "length_mean": 41.3,
                "short_share": 0.0094,
                "finished_share": 0.803,
                **counts,
            },
            "ppo": {
                "gold": estimate(0.681, 0.655, 0.707),
                "wins": {
                    "gold": estimate(0.781, 0.720, 0.834),
                    "reward": estimate(0.913, 0.874, 0.945),
                },
                "kl": estimate(21.74, 20.3, 23.2),
                "reward_mean": 2.31,
                "length_mean": 58.6,
                "short_share": 0.0,
                "finished_share": 0.941,
                **counts,
            },
            "dpo": {
                "gold": estimate(0.634, 0.607, 0.660),
                "wins": {
                    "gold": estimate(0.703, 0.640, 0.761),
                    "reward": estimate(0.784, 0.729, 0.836),
                },
                "kl": estimate(8.62, 7.9, 9.4),
                "reward_mean": 1.18,
                "length_mean": 52.9,
                "short_share": 0.0,
                "finished_share": 0.909,
                **counts,
            },
        },
        "control": {
            "gold": estimate(0.497, 0.460, 0.530),
            "reward": estimate(0.508, 0.471, 0.545),
        },
        "annotators": [
            {
                "name": "careful",
                "simulated": True,
                "noise": 0.3,
                "agreement_with_gold": 0.894,
                "votes": 960,
            },
            {
                "name": "hasty",
                "simulated": True,
                "noise": 1.0,
                "agreement_with_gold": 0.742,
                "votes": 960,
            },
            {
                "name": "likes-long",
                "simulated": True,
                "noise": 0.5,
                "agreement_with_gold": 0.688,
                "votes": 960,
            },
        ],
        "reward_model": {"accuracy": 0.711, "pearson_gold": 0.743},
        "disclosure": [
            (
                "Three simulated annotators cast the votes: the run shows that the loop works, not"
                " what people want."
            ),
            (
                "The gold scorer cannot see whether a statement is true; it reads form, relevance"
                " and length."
            ),
            (
                "Intervals cover the choice of prompts and the sampling of responses. They do not"
                " cover the training seed."
            ),
        ],
        "samples": samples(),
        "environment": {
            "versions": {
                "torch": "2.13.0+cpu",
                "transformers": "5.2.0",
                "peft": "0.19.0",
                "trl": "1.16.0",
            },
            "device": "cpu (2 cores)",
            "python": "3.11.7",
            "commit": "abc1234",
            "platform": "Linux",
        },
    }


def samples() -> list[dict[str, Any]]:
    """Three prompts with the answers of three policies."""
    rows = [
        (
            "cooking-3",
            "How do I keep rice from sticking to the pan?",
            [
                (
                    "You can use a pan. Rice is a food that sticks to the pan when it is cooked in"
                    " the pan."
                ),
                (
                    "Rinse the rice until the water runs clear, then use a wide pan and a lid that"
                    " fits.\n\n1. Bring one part rice and one and a half parts water to a boil.\n2."
                    " Turn the heat to its lowest and leave the lid on for twelve minutes.\n3. Rest"
                    " it off the heat for five minutes, then loosen it with a fork."
                ),
                (
                    "Rinse the rice first, keep the heat low once it boils, and let it rest for"
                    " five minutes."
                ),
            ],
            (0.31, 0.86, 0.72),
        ),
        (
            "travel-11",
            "Write two sentences to a friend whose train is late.",
            [
                (
                    "I am sorry to hear that your train is late. I am sorry to hear that your train"
                    " is late."
                ),
                (
                    "No rush at all, I found a seat in the café across from platform four. Text me"
                    " when you pull in and I will order you something warm."
                ),
                (
                    "Take your time, I am happy here with my book. See you when the train decides"
                    " to arrive!"
                ),
            ],
            (0.36, 0.83, 0.85),
        ),
        (
            "code-7",
            "What does `git stash` do?",
            [
                "It stashes.",
                (
                    "`git stash` puts your uncommitted changes aside and gives you a clean working"
                    " tree; `git stash pop` brings them back."
                ),
                "It saves your local changes for later and reverts the files.",
            ],
            (0.12, 0.91, 0.64),
        ),
    ]
    policies = ("sft", "ppo", "dpo")
    return [
        {
            "id": name,
            "prompt": [{"role": "user", "content": prompt}],
            "responses": {
                policy: {"text": text, "gold": gold, "reward": 6.1 * gold - 2.4}
                for policy, text, gold in zip(policies, texts, golds, strict=True)
            },
        }
        for name, prompt, texts, golds in rows
    ]


def events() -> list[dict[str, Any]]:
    """A complete ``events.jsonl``: one uninterrupted run of every training stage."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []

    def stage(name: str, steps: list[dict[str, Any]]) -> None:
        rows.append({"event": "stage", "stage": name, "status": "started"})
        rows.extend(
            {"stage": name, "event": "step", "step": i, **step} for i, step in enumerate(steps, 1)
        )
        rows.append({"event": "stage", "stage": name, "status": "finished"})

    def noise(scale: float) -> float:
        return rng.gauss(0, scale)

    stage(
        "sft",
        [
            {"loss": 1.9 + 1.1 * math.exp(-i / 18) + noise(0.06), "lr": 2e-4 * (1 - i / 120)}
            for i in range(120)
        ],
    )
    stage(
        "reward",
        [
            {
                "loss": 0.55 + 0.16 * math.exp(-i / 12) + noise(0.03),
                "accuracy": 0.72 - 0.2 * math.exp(-i / 12) + noise(0.03),
            }
            for i in range(50)
        ],
    )
    stage(
        "dpo",
        [
            {
                "loss": 0.44 + 0.253 * math.exp(-i / 15) + noise(0.02 * min(i, 1)),
                "accuracy": 0.79 - 0.29 * math.exp(-i / 8) + noise(0.03),
                "margin": 1.9 * (1 - math.exp(-i / 20)) + noise(0.05 * min(i, 1)),
            }
            for i in range(60)
        ],
    )
    ppo = []
    for i in range(STEPS):
        depth = math.sqrt(22 * (1 - math.exp(-i / 25)) / 0.91)
        kl = depth**2 + abs(noise(0.2)) * (i > 0)
        ppo.append(
            {
                "reward_mean": 0.52 * depth - 0.006 * depth**2 + noise(0.05),
                "reward_std": 0.82 - 0.006 * i + noise(0.02),
                "gold_mean": (
                    0.522 + 0.110 * depth - 0.0163 * depth**2 + noise(0.005) if i % 3 == 0 else None
                ),
                "kl": kl,
                "length_mean": 54 + 24 * (1 - math.exp(-i / 30)) + noise(1),
                "entropy": 1.9 - 0.013 * i + noise(0.03),
                "clip_fraction": 0.05 + 0.03 * math.exp(-i / 20) + noise(0.006),
                "value_loss": 0.2 + math.exp(-i / 10) + noise(0.02),
                "explained_variance": 0.7 * (1 - math.exp(-i / 12)) + noise(0.03),
                "logprob_gap": 0.0021 + abs(noise(0.0004)),
                "seconds": {
                    "generate": 2.4 + noise(0.1),
                    "score": 0.9 + noise(0.04),
                    "optimise": 2.0 + noise(0.1),
                },
            }
        )
    stage("ppo", ppo)
    return rows


def write_run(
    folder: Path, data: dict[str, Any] | None = None, rows: list[dict[str, Any]] | None = None
) -> Path:
    """Write a run folder, by default the complete one, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(
        json.dumps(summary() if data is None else data), encoding="utf-8"
    )
    lines = [json.dumps(row) for row in (events() if rows is None else rows)]
    (folder / "events.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder
