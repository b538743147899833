"""What other commands and stages add to a run folder: an LLM judge, benchmarks, reward tests,
responses to every prompt.
"""

import json
import random
from pathlib import Path
from typing import Any

import report_fixture
from report_fixture import estimate, level

from prefloop.artifacts.manifest import MANIFEST
from prefloop.base.sealed import hashes_of, write_sealed

PROMPTS = 30
WORDS = ["rice", "river", "lantern", "window", "copper", "meadow"]


def judged() -> dict[str, Any]:
    """The summary of a run that an LLM judged too, with the matrix of its policies, contamination
    and settings.
    """
    data = report_fixture.summary()
    llm = {"ppo": (0.641, 0.572, 0.706, 0.603), "dpo": (0.587, 0.516, 0.655, 0.592)}
    for policy, (rate, low, high, controlled) in llm.items():
        data["results"][policy]["wins"]["judge"] = estimate(rate, low, high)
        data["results"][policy] |= {
            "judge": "judge-7b",
            "disagreement": 0.184,
            "sign_test_p": 0.0031,
            **level("judge-7b", controlled, controlled - 0.07, controlled + 0.07),
        }
    data["matrix"] = {
        "judge": "judge-7b",
        "policies": ["sft", "ppo", "dpo"],
        "rate": [[0.5, 0.359, 0.413], [0.641, 0.5, 0.547], [0.587, 0.453, 0.5]],
        "low": [[None, 0.294, 0.345], [0.572, None, 0.478], [0.516, 0.384, None]],
        "high": [[None, 0.428, 0.484], [0.706, None, 0.616], [0.655, 0.522, None]],
        "elo": {
            "sft": estimate(940.2, 912.0, 969.1),
            "ppo": estimate(1041.0, 1012.3, 1070.8),
            "dpo": estimate(1018.8, 990.0, 1046.2),
        },
    }
    data["judging"] = {
        "judge": "judge-7b",
        "mode": "pairwise",
        "used": {
            "requests": 960,
            "prompt_tokens": 412_330,
            "completion_tokens": 9_812,
            "cost": 0.4712,
        },
        "failed": 2,
        "unparsable": 5,
        "position_bias": estimate(0.562, 0.531, 0.593),
    }
    data["contamination"] = {
        "count": 2,
        "examples": [
            {"id": id, "train_id": f"t-{id}", "kind": "prompt", "text": text}
            for id, text in (("q1", "What does `git stash` do?"), ("q2", "Name three rivers."))
        ],
    }
    data["config"] = {
        "run": "demo",
        "algo": "ppo",
        "ppo": {"kl": {"coef": 0.02}},
        "label": {"annotators": ["careful"]},
    }
    return data


def bench() -> dict[str, Any]:
    """``bench.json``: one task that got worse, one that did not move."""
    return {
        "tasks": {
            "hellaswag": {
                "metric": "acc_norm",
                "higher_is_better": True,
                "adapters": {
                    "base": {"value": 0.4312, "stderr": 0.0221, "n": 500},
                    "sft": {"value": 0.4352, "stderr": 0.0222, "n": 500},
                    "ppo": {"value": 0.3821, "stderr": 0.0217, "n": 500},
                },
                "difference": {
                    "sft": {"value": 0.004, "stderr": 0.0061},
                    "ppo": {"value": -0.0491, "stderr": 0.0103},
                },
            },
            "perplexity-notes": {
                "metric": "word_perplexity",
                "higher_is_better": False,
                "adapters": {
                    "base": {"value": 21.4},
                    "sft": {"value": 17.9},
                    "ppo": {"value": 18.4},
                },
                "difference": {
                    "sft": {"value": -3.5, "stderr": 0.4},
                    "ppo": {"value": -3.0, "stderr": 0.4},
                },
            },
        },
        "settings": {"limit": 500, "model_args": {"address": "http://user:hunter2@host/v1"}},
    }


def reward_eval() -> dict[str, Any]:
    """``reward-eval.json``: a file with every field and one with the least."""
    return {
        "helpful_test.jsonl.gz": {
            "pairs": 500,
            "accuracy": 0.688,
            "accuracy_ci": [0.647, 0.727],
            "loss": 0.591,
            "ece": 0.031,
            "ece_raw": 0.118,
            "length": {
                "always the longer": 0.561,
                "preferred response is": {
                    "shorter by over 50": {"pairs": 91, "accuracy": 0.49},
                    "longer by over 50": {"pairs": 140, "accuracy": 0.83},
                },
            },
            "bins": [
                {"p": 0.5 + i / 10 + 0.02, "share": 0.48 + i / 11, "n": 100 - 15 * i}
                for i in range(5)
            ],
            "subsets": {
                "coding": {"accuracy": 0.61, "pairs": 120},
                "safety": {"accuracy": 0.74, "pairs": 380},
            },
        },
        "other.jsonl": {"accuracy": 0.5},
    }


def write_responses(
    folder: Path, data: dict[str, Any], prompts: int = PROMPTS, **texts: str
) -> None:
    """Artifacts ``respond-*`` of the policies and ``judge``, the keys of which go into the
    summary's stages.
    """
    policies, grades = list(data["results"]), []
    data["stages"] = [stage for stage in data["stages"] if stage["name"] != "evaluate"]
    data["stages"] += [
        {"name": f"respond-{p}", "key": f"key-{p}", "seconds": 9.0} for p in policies
    ]
    data["stages"].append({"name": "judge", "key": "key-judge", "seconds": 1.0})
    for number, policy in enumerate(policies):
        rng, rows = random.Random(policy), []
        for i in range(prompts):
            text = (
                texts.get(policy)
                or " ".join(rng.choices(WORDS, k=3 + (7 * i + number) % 19)) + f" {policy}-{i}"
            )
            reward = round(rng.gauss(0.4 * number, 1), 3)
            rows.append(
                {
                    "id": f"q{i}",
                    "prompt": [{"role": "user", "content": f"Question {i} about {WORDS[i % 6]}?"}],
                    "responses": [
                        {
                            "text": text,
                            "finished": i % 5 > 0,
                            "tokens": 9,
                            "reward": reward,
                            "kl": 0.1,
                        }
                    ]
                    * 2,
                }
            )
        write_artifact(folder, f"respond-{policy}", f"key-{policy}", "responses.jsonl", rows)
    for i in range(prompts):
        grades.append(
            {
                "id": f"q{i}",
                "gold": {
                    p: [round(((i * 7 + k * 13) % 29) / 29, 3)] * 2 for k, p in enumerate(policies)
                },
            }
        )
    write_artifact(folder, "judge", "key-judge", "scores.jsonl", grades)


def write_artifact(
    folder: Path, slot: str, key: str, file: str, rows: list[dict[str, Any]]
) -> None:
    """One artifact with its manifest and one file of rows."""
    place = folder / "artifacts" / slot
    place.mkdir(parents=True, exist_ok=True)
    (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seal(place, slot, key)


def seal(place: Path, stage: str, key: str) -> None:
    """The manifest of an artifact as its files are now."""
    identity = {"stage": stage, "seed": 0, "config": {"samples": 2}}
    files = hashes_of(place, (path for path in place.iterdir() if path.name != MANIFEST))
    write_sealed(
        place / MANIFEST, {"stage": stage, "key": key, "identity": identity, "files": files}
    )


def write_samples(folder: Path, data: dict[str, Any]) -> None:
    """What PPO wrote of two prompts while it learned."""
    key = next(stage["key"] for stage in data["stages"] if stage["name"] == "ppo")
    rows = [
        {
            "step": step,
            "id": id,
            "prompt": [{"role": "user", "content": f"Prompt {id}?"}],
            "response": f"answer {id} at {step}",
            "reward": 0.1 * step,
            "kl": 0.3 * step,
            "length": 5,
            "finished": step != 9,
        }
        for step in range(1, 12, 2)
        for id in ("a", "b")
    ]
    write_artifact(folder, "ppo", key, "samples.jsonl", rows)


def write_everything(folder: Path) -> Path:
    """A run folder with every file that a report reads."""
    data, rows = judged(), report_fixture.events()
    for row in rows:
        if row["stage"] == "ppo" and "step" in row:
            row["rewards"] = {
                "reward_model": row["reward_mean"],
                "function:length": 0.2 - 0.001 * row["step"],
            }
    write_responses(folder, data)
    write_samples(folder, data)
    for name, value in (("bench.json", bench()), ("reward-eval.json", reward_eval())):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return report_fixture.write_run(folder, data, rows)
