"""Judges that run in this process: a language model, and the reward ensemble of a run."""

import dataclasses
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from judge_endpoint import PROMPT, endpoint_fixture  # noqa: F401
from judge_stage import compared
from safetensors.torch import load_file
from tiny import plain, tiny_model, tiny_tokenizer

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    JudgeConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.data.sources import write_jsonl
from prefloop.errors import ConfigError, DataError, JudgeError, ModelError
from prefloop.export import export
from prefloop.judging.cache import VerdictCache
from prefloop.judging.ensemble import RewardGrader
from prefloop.judging.forms import Grading, Pairwise
from prefloop.judging.judges import CachedJudge
from prefloop.judging.language_model import ModelJudge
from prefloop.judging.local import LocalModel
from prefloop.judging.specs import open_grader, open_judge
from prefloop.models.backbone import Backbone
from prefloop.models.load import load
from prefloop.models.reward import Reward
from prefloop.records import Comparison, Message, Prompt, Response, Vote
from prefloop.runtime import Runtime
from prefloop.stages.label import Label
from prefloop.stages.reward import RewardModel


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny random model with a context that a judge's question fits into: rotary positions need no weights."""
    folder = tiny_model(tmp_path_factory.mktemp("judge") / "roomy", "llama-wide")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def test_a_local_model_is_asked_the_same_words_and_says_what_it_says_alone(roomy, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)  # float32, as the other opinion
    items = [(PROMPT, "seven", "4"), (PROMPT, "a much longer answer than the other one", "b"), (PROMPT, "2", "3")]
    judge = open_judge(
        f"local:{roomy}", JudgeConfig(max_tokens=6, max_concurrency=2, price_prompt=1, price_completion=1)
    )
    verdicts = judge.compare_many(items)
    model, tokenizer = plain(roomy), tiny_tokenizer()
    for item, verdict in zip(items, verdicts, strict=True):
        messages = Pairwise().question(*item).messages(structured=False)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
        )
        assert verdict.raw[0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert verdict.unparsable == 1 and len(verdict.raw) == 2, "asked again, and babbling still"
        assert verdict.prompt_tokens > 2 * ids.shape[1]
    usage = judge.usage
    assert (usage.requests, usage.retries) == (6, 0)
    assert usage.prompt_tokens == sum(v.prompt_tokens for v in verdicts)
    assert usage.cost == pytest.approx((usage.prompt_tokens + usage.completion_tokens) / 1e6)


class Canned:
    """An engine whose replies are tokens of given texts."""

    context = None

    def __init__(self, texts):
        self.texts, self.tokenizer, self.batches = iter(texts), tiny_tokenizer(), []

    def continuations(self, prompts_ids, schemas):
        self.batches.append(len(prompts_ids))
        return [self.tokenizer(next(self.texts))["input_ids"] for _ in prompts_ids]


def test_a_local_models_dialogues_go_on_in_step_and_arrive_as_they_end(roomy):
    model = LocalModel(str(roomy), roomy.parent, batch_size=3)
    model._engine = Canned(["[[A]]", "Hm.", "[[B]]", "Well. [[C]]", "[[A]]"])
    arrived = []
    verdicts = ModelJudge(model).compare_many(
        [(PROMPT, f"a{i}", "b") for i in range(4)], lambda index, verdict: arrived.append(index)
    )
    assert [v.score for v in verdicts] == [1.0, 0.5, 0.0, 1.0]
    assert verdicts[1].raw == ("Hm.", "Well. [[C]]") and verdicts[1].unparsable == 0
    assert (model._engine.batches, arrived) == ([3, 1, 1], [0, 2, 1, 3])


def test_a_question_over_a_local_models_context_fails_alone(roomy):
    judge = open_judge(f"local:{roomy}", JudgeConfig(max_tokens=6))
    failed, fine = judge.compare_many([(PROMPT, "word " * 4000, "b"), (PROMPT, "a", "b")])
    assert "tokens; with max_tokens 6 that is over the model's context of 4096" in failed.failed
    assert not fine.failed


def test_a_cached_evaluation_does_not_load_the_local_model(roomy, tmp_path, monkeypatch):
    for _ in range(2):
        judge = CachedJudge(open_judge(f"local:{roomy}", JudgeConfig(max_tokens=4)), VerdictCache(tmp_path / "c"))
        judge.compare(PROMPT, "a", "b")
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)


def test_a_template_without_a_system_role_gets_the_instructions_in_the_first_turn(tmp_path, roomy):
    model = LocalModel(str(roomy), roomy.parent)
    model._chat.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    ids = model._prompt_ids(Pairwise().question(PROMPT, "a", "b").messages(False))
    text = model._chat.tokenizer.decode(ids)
    assert text.startswith("<user>You are an impartial judge.") and "=== END RESPONSE B" in text


def test_a_local_model_that_is_not_there_says_where_it_was_looked_for():
    with pytest.raises(ModelError, match=r"model folder '\./absent' does not exist"):
        open_judge("local:./absent")
    with pytest.raises(ConfigError, match="names nothing"):
        open_judge("local:")


def test_vllm_in_this_process_holds_a_local_judges_replies_to_the_schema(roomy):
    class Bare(Grading):
        """Grades without reasons: words without sense would not end."""

        schema: ClassVar = {**Grading.schema, "properties": {"grade": {"enum": [1, 2, 3]}}, "required": ["grade"]}

    grader = open_grader(f"local:{roomy}", JudgeConfig(mode="grade", engine="vllm", max_tokens=16))
    grader.form = Bare()
    grades = grader.grade_many([(Prompt("p", PROMPT), text) for text in ("seven", "4", "a longer one")])
    try:
        assert all(grade.score in (1, 2, 3) and grade.unparsable == 0 for grade in grades)
        assert [json.loads(grade.raw[0]) for grade in grades] == [{"grade": grade.score} for grade in grades]
        assert grader.usage.requests == 3
        assert "model's context of 4096" in grader.grade_many([(Prompt("p", PROMPT), "word " * 4000)])[0].failed
    finally:
        grader.model.close()


def test_pickled_weights_are_not_loaded(roomy, tmp_path):
    copy = shutil.copytree(roomy, tmp_path / "pickled")
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot be loaded as a judge: .*safetensors"):
        _ = LocalModel(str(copy), tmp_path)._engine
    with pytest.raises(ModelError, match=r"cannot be loaded: .*safetensors"):
        load(BackboneConfig(model="pickled", precision="fp32", max_length=96), copy, torch.device("cpu"))


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory, tiny_folders):
    """A run's folder with an ensemble of two reward models, and the runtime that trained them."""
    root: Path = tmp_path_factory.mktemp("reward")
    config = BackboneConfig(
        model=str(tiny_folders("llama")), precision="fp32", max_length=96, adapter=AdapterConfig(r=4, alpha=8)
    )
    runtime = Runtime(config, output=root / "runs")
    rows = [
        Comparison(
            str(i), [Message("user", f"question {i}")], [Response(f"good {i}"), Response(f"bad {i}")], [Vote("a", 0)]
        )
        for i in range(8)
    ]
    write_jsonl(root / "pairs.jsonl", rows)
    comparisons = Label(LabelConfig(source="file"), DataConfig(comparisons=root / "pairs.jsonl")).run(runtime)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0)
    stage = RewardModel(RewardConfig(members=2, batch_pairs=4, holdout=0.25, optim=optim), from_sft=False)
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
        scores = reward.score([Document(ids, [encoder.response(text, len(ids)) for text in responses], [0, 1])])
        expected.append([sum(scores[k]) / 2 for k in (0, 1)])
    reward.drop()
    for spec in (f"reward:{run}", f"reward:{artifact.path}"):
        verdicts = open_judge(spec).compare_many(items)
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
    [ours], [theirs] = (open_judge(f"reward:{place}").compare_many(items) for place in (run, tmp_path / "exported"))
    assert ours == theirs and not ours.failed


def test_a_reward_judge_uses_a_loaded_backbone_and_leaves_it_as_it_was(rewarded):
    run, _, runtime = rewarded
    roles = set(runtime.backbone.roles)
    grader = RewardGrader(run, backbone=runtime.backbone)
    grade = grader.grade_many([(Prompt("p", PROMPT), "seven")])[0]
    assert grade.score == pytest.approx(sum(grade.parts.values()) / 2) and list(grade.parts) == ["member 0", "member 1"]
    grader.close()
    assert runtime.backbone.roles == roles


def test_a_prompt_that_leaves_the_reward_model_no_room_fails_alone(rewarded):
    run, _, runtime = rewarded
    judge = open_judge(f"reward:{run}", backbone=runtime.backbone)
    long = [Message("user", "word " * 200)]
    failed, fine = judge.compare_many([(long, "a", "b"), (PROMPT, "a", "b")])
    assert "over backbone.max_length = 96" in failed.failed and not fine.failed
    with pytest.raises(DataError, match="prompt 'long'"):
        judge.grader.grade(Prompt("long", long), "a")
    with pytest.raises(JudgeError, match="max_length"):
        judge.compare(long, "a", "b")


def test_a_reward_model_of_another_backbone_is_refused_with_both_names(rewarded, tiny_folders):
    run, _, _ = rewarded
    other = Runtime(
        BackboneConfig(model=str(tiny_folders("qwen2")), precision="fp32", max_length=96), output=run.parent
    )
    with pytest.raises(ModelError, match=r"qwen2.* is not the model that .*demo' was trained on .*llama"):
        open_judge(f"reward:{run}", backbone=other.backbone)


def test_a_folder_without_a_whole_reward_model_says_what_is_missing(rewarded, tmp_path):
    _, artifact, _ = rewarded
    with pytest.raises(ModelError, match="is neither a run with a reward model"):
        open_judge(f"reward:{tmp_path}")
    (tmp_path / "reward.json").write_bytes((artifact / "reward.json").read_bytes())
    with pytest.raises(ModelError, match=r"nor a reward artifact \(reward.json and manifest.json\)"):
        open_judge(f"reward:{tmp_path}")
    (tmp_path / "manifest.json").write_bytes((artifact / "manifest.json").read_bytes())
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        open_judge(f"reward:{tmp_path}")
    copy = shutil.copytree(artifact.path, tmp_path / "copy")
    (copy / "member-1" / "head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not a whole reward model: .*head\.safetensors is missing"):
        open_judge(f"reward:{copy}").fingerprint()
    (copy / "reward.json").write_text("{}")
    with pytest.raises(ModelError, match=r"reward\.json is damaged"):
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
    assert compared(runtime, texts, judge=f"reward:{run}").metrics["matrix"]["judge"] == "reward:demo"
    assert not runtime.backbone.roles, "the members are off it again"


def test_a_reward_model_of_another_adapter_shape_has_the_memory_to_itself_and_gives_it_back(rewarded, monkeypatch):
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


def test_a_closed_endpoint_keeps_no_connection(endpoint):
    server = endpoint(lambda number, body: "[[A]]")
    for judge in (
        open_judge(f"openai:m@{server.url}"),
        open_judge(f"openai:m@{server.url}", JudgeConfig(mode="grade")),
    ):
        judge.close()
        with pytest.raises(RuntimeError, match="closed"):
            judge.compare(PROMPT, "a", "b")
    assert not server.bodies
