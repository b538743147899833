"""The reward ensemble of a run as a judge."""

import dataclasses
import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from judge_endpoint import PROMPT
from judge_stage import compared

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.data.sources import write_jsonl
from prefloop.errors import JudgeError, ModelError
from prefloop.evaluation.judges.ensemble import RewardGrader
from prefloop.evaluation.judges.open import open_judge
from prefloop.export.adapter import export
from prefloop.models.backbone import Backbone
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.records import Comparison, Message, Prompt, Response, Vote
from prefloop.runs.runtime import Runtime


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory, tiny_folders):
    """A run's folder with an ensemble of two reward models, and the runtime that trained them."""
    root: Path = tmp_path_factory.mktemp("reward")
    config = BackboneConfig(
        model=str(tiny_folders("llama")),
        precision="fp32",
        max_length=96,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    runtime = Runtime(config, output=root / "runs")
    rows = [
        Comparison(
            str(i),
            [Message("user", f"question {i}")],
            [Response(f"good {i}"), Response(f"bad {i}")],
            [Vote("a", 0)],
        )
        for i in range(8)
    ]
    write_jsonl(root / "pairs.jsonl", rows)
    comparisons = Label(
        LabelConfig(source="file"), DataConfig(comparisons=root / "pairs.jsonl")
    ).run(runtime)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0)
    stage = RewardModel(
        RewardConfig(members=2, batch_pairs=4, holdout=0.25, optim=optim), from_sft=False
    )
    artifact = stage.run(runtime, comparisons=comparisons)
    links = root / "runs" / "demo" / "artifacts"
    links.mkdir(parents=True)
    (links / "reward").symlink_to(artifact.path)
    return root / "runs" / "demo", artifact, runtime


def test_the_reward_ensemble_judges_by_its_mean_from_run_or_artifact(rewarded):
    run, artifact, runtime = rewarded
    items = [
        ([Message("user", "question 3")], "good 3", "bad 3"),
        ([Message("user", "question 3")], "bad 3", "something else"),
        ([Message("user", "What now?")], "this", "that"),
    ]
    reward = Reward.load(runtime.backbone, artifact.path)
    encoder = Encoder(runtime.backbone.chat, 96)
    expected = []
    for prompt, *responses in items:
        ids = encoder.prompt("p", prompt)
        scores = reward.score(
            [
                Document(
                    ids,
                    [
                        encoder.response("p", prompt, Response(text), len(ids)).ids
                        for text in responses
                    ],
                    [0, 1],
                )
            ]
        )
        expected.append([sum(scores[k]) / 2 for k in (0, 1)])
    reward.drop()
    for spec in (f"reward:{run}", f"reward:{run}:reward", f"reward:{artifact.path}"):
        verdicts = open_judge(spec).ask(items)
        found = [[float(score) for score in verdict.raw] for verdict in verdicts]
        assert torch.tensor(found).flatten().tolist() == pytest.approx(
            [score for pair in expected for score in pair], abs=1e-5
        )
        assert [v.score for v in verdicts] == [float(a > b) for a, b in found]
    assert open_judge(f"reward:{run}").name == "reward:demo"


def test_an_exported_reward_model_judges_as_the_runs_own(rewarded, tmp_path):
    run, _, _ = rewarded
    export(f"{run}:reward", tmp_path / "exported")
    items = [([Message("user", "question 3")], "good 3", "bad 3")]
    [ours], [theirs] = (
        open_judge(f"reward:{place}").ask(items) for place in (run, tmp_path / "exported")
    )
    assert ours == theirs and not ours.failed


def test_a_reward_judge_uses_a_loaded_backbone_and_leaves_it_as_it_was(rewarded):
    run, _, runtime = rewarded
    roles = set(runtime.backbone.roles)
    grader = RewardGrader(run, backbone=runtime.backbone)
    grade = grader.ask([(Prompt("p", PROMPT), "seven")])[0]
    assert grade.score == pytest.approx(sum(grade.parts.values()) / 2) and list(grade.parts) == [
        "member 0",
        "member 1",
    ]
    grader.close()
    assert runtime.backbone.roles == roles


def test_a_prompt_that_leaves_the_reward_model_no_room_fails_alone(rewarded):
    run, _, runtime = rewarded
    judge = open_judge(f"reward:{run}", backbone=runtime.backbone)
    long = [Message("user", "word " * 200)]
    failed, fine = judge.ask([(long, "a", "b"), (PROMPT, "a", "b")])
    assert "over backbone.max_length = 96" in failed.failed and not fine.failed
    [grade] = judge.grader.ask([(Prompt("long", long), "a")])
    assert "prompt 'long'" in grade.failed
    with pytest.raises(JudgeError, match="max_length"):
        judge.compare(long, "a", "b")


def test_a_reward_model_of_another_backbone_is_refused_with_both_names(rewarded, tiny_folders):
    run, _, _ = rewarded
    other = Runtime(
        BackboneConfig(model=str(tiny_folders("qwen2")), precision="fp32", max_length=96),
        output=run.parent,
    )
    with pytest.raises(
        ModelError, match=r"qwen2.* is not the model that .*demo' was trained on .*llama"
    ):
        open_judge(f"reward:{run}", backbone=other.backbone)


def test_a_folder_without_a_whole_reward_model_says_what_is_missing(rewarded, tmp_path):
    run, artifact, _ = rewarded
    with pytest.raises(ModelError, match="is neither a run with a reward model"):
        open_judge(f"reward:{tmp_path}")
    for near in ("dmo", "dmo:reward"):
        with pytest.raises(ModelError, match=rf"did you mean '{run}'"):
            open_judge(f"reward:{run.parent / near}")
    with pytest.raises(ModelError, match=r"no finished result 'rewrd' \(did you mean 'reward'"):
        open_judge(f"reward:{run}:rewrd")
    (tmp_path / "reward.json").write_bytes((artifact / "reward.json").read_bytes())
    with pytest.raises(
        ModelError, match=r"nor a reward artifact \(reward.json and manifest.json\)"
    ):
        open_judge(f"reward:{tmp_path}")
    (tmp_path / "manifest.json").write_bytes((artifact / "manifest.json").read_bytes())
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        open_judge(f"reward:{tmp_path}")
    copy = shutil.copytree(artifact.path, tmp_path / "copy")
    (copy / "member-1" / "head.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"is not a whole reward model: .*head\.safetensors is missing"
    ):
        open_judge(f"reward:{copy}").fingerprint()
    (copy / "reward.json").write_text("{}")
    with pytest.raises(ModelError, match=r"reward\.json: members: Field required"):
        open_judge(f"reward:{copy}")


def test_a_reward_judges_fingerprint_follows_its_weights(rewarded, tmp_path):
    _, artifact, _ = rewarded
    copy = tmp_path / "copy"
    shutil.copytree(artifact.path, copy)
    before = open_judge(f"reward:{copy}").fingerprint()
    assert before == open_judge(f"reward:{artifact.path}").fingerprint()
    content = bytearray((copy / "member-1" / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "member-1" / "head.safetensors").write_bytes(content)
    assert open_judge(f"reward:{copy}").fingerprint() != before


def test_a_run_judged_by_its_own_reward_model_loads_no_second_backbone_and_leaves_its_own_as_it_was(
    rewarded, monkeypatch
):
    run, _, runtime = rewarded
    monkeypatch.setattr(Backbone, "load", lambda *anything: pytest.fail("a second backbone"))
    texts = {policy: [f"{policy} says {i}" for i in range(4)] for policy in ("sft", "ppo")}
    assert (
        compared(runtime, texts, judge=f"reward:{run}").metrics["matrix"]["judge"] == "reward:demo"
    )
    assert not runtime.backbone.roles, "the members are off it again"


def test_a_reward_model_of_another_adapter_shape_has_the_memory_to_itself_and_gives_it_back(
    rewarded, monkeypatch
):
    run, _, trained = rewarded
    other = dataclasses.replace(trained.backbone_config, adapter=AdapterConfig(r=2, alpha=8))
    runtime = Runtime(other, output=run.parent)
    alive = weakref.WeakSet([runtime.backbone])
    seen = []
    load = Backbone.load

    def loaded(*given):
        gc.collect()
        seen.append(len(alive))
        alive.add(found := load(*given))
        return found

    monkeypatch.setattr(Backbone, "load", loaded)
    compared(runtime, {"sft": ["a", "b"], "dpo": ["c", "d"]}, judge=f"reward:{run}")
    assert seen == [0] and not alive, "one at a time, and none at the end"
