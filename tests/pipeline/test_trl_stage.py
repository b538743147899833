"""TRL's trainers as stages: what they are given, what they compare with, what they leave behind."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import documents
import pytest
import torch
from adapted import small_data
from loop_run import run as run_pipeline
from loop_run import statuses, summary, write_config
from safetensors.torch import load_file
from tiny import tiny_model
from torch import Tensor
from transformers import TrainingArguments
from trl.trainer.utils import use_adapter

from prefloop.artifacts.store import Artifact
from prefloop.base.interrupt import Ended, heeding
from prefloop.base.jsonl import read_rows
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    LabelConfig,
    OptimConfig,
    PreferenceConfig,
    RewardConfig,
    RLHFConfig,
    SFTStageConfig,
    TrlConfig,
)
from prefloop.config.algorithms import reward_model
from prefloop.config.load import parse
from prefloop.config.trl import METHODS, REFUSED, TRAINERS, slot_of
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document, Pack, packs
from prefloop.data.sources import write_jsonl
from prefloop.errors import AuditError, ConfigError, DataError, RewardError
from prefloop.export.adapter import export
from prefloop.pipeline.algorithms import algorithm
from prefloop.pipeline.compose import compose
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.preference import Preference
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.pipeline.stages.trl import Trl
from prefloop.pipeline.stages.trl_rows import dealt
from prefloop.planning.refusals import uncounted
from prefloop.records import Comparison, Message, Response, Vote
from prefloop.runs.open import open_policies
from prefloop.runs.runtime import Runtime
from prefloop.training import trl_arguments, trl_trainer
from prefloop.training.policy import logps_R
from prefloop.training.trl_arguments import trainer_class
from prefloop.training.trl_callbacks import Moving
from prefloop.training.trl_rewards import RewardFunctions

pytestmark = pytest.mark.slow

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=0)
PAIRS = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "num_train_epochs": 1}
SAMPLED = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_steps": 2,
    "beta": 0.1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("data"))


def runtime_of(model: Path, output: Path, method: str = "lora", **backbone: Any) -> Runtime:
    settings: dict[str, Any] = {"precision": "fp32", "compute": "fp32", "max_length": 64}
    adapter = AdapterConfig(method=method, r=4, alpha=8)
    config = BackboneConfig(model=str(model), adapter=adapter, **(settings | backbone))
    generation = GenerationConfig(temperature=1.0, max_new_tokens=4, max_num_seqs=8)
    return Runtime(config, generation, "transformers", 0, output)


class Made:
    """A runtime and what its stages have made, each once."""

    def __init__(self, runtime: Runtime, data: DataConfig) -> None:
        self.runtime, self.data = runtime, data
        self.artifacts: dict[str, Artifact] = {}

    def of(self, slot: str) -> Artifact:
        if slot not in self.artifacts:
            self.artifacts[slot] = self.run(
                {
                    "sft": lambda: SFT(SFTStageConfig(batch_size=1, optim=OPTIM), self.data),
                    "comparisons": lambda: Label(LabelConfig(source="file"), self.data),
                    "reward": lambda: RewardModel(
                        RewardConfig(members=2, holdout=0.0, batch_pairs=4, optim=OPTIM)
                    ),
                }[slot]()
            )
        return self.artifacts[slot]

    def run(self, stage: Stage, runtime: Runtime | None = None) -> Artifact:
        stage.preflight()
        return stage.run(runtime or self.runtime, **{slot: self.of(slot) for slot in stage.inputs})

    def trained(self, trainer: str, args: dict[str, Any] = PAIRS, **config: Any) -> Artifact:
        return self.run(Trl(trainer, TrlConfig(args=args, **config), self.data))


@pytest.fixture(scope="module")
def made(tiny_folder: Path, data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(runtime_of(tiny_folder, tmp_path_factory.mktemp("made")), data)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every trainer that a stage makes."""
    seen: list[Any] = []
    make = trl_trainer.make

    def kept(*arguments: Any, **more: Any) -> Any:
        seen.append(make(*arguments, **more))
        return seen[-1]

    monkeypatch.setattr(trl_trainer, "make", kept)
    return seen


def adapter(artifact: Artifact) -> dict[str, Tensor]:
    return load_file(artifact / "adapter_model.safetensors")


def steps_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for row in read_rows(artifact / "events.jsonl") if row["event"] == "step"]


def test_dpo_starts_at_ln_2_and_ends_in_a_float32_adapter_that_has_moved(made: Made) -> None:
    found = made.trained("DPOTrainer")
    steps = steps_of(found)
    assert len(steps) == found.metrics["steps"] == 3
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) != steps[-1]["loss"]
    assert steps[-1]["accuracy"] == found.metrics["accuracy_last"] == 1.0
    start, end = adapter(made.of("sft")), adapter(found)
    assert start.keys() == end.keys() and {t.dtype for t in end.values()} == {torch.float32}
    assert not any(torch.equal(start[name], tensor) for name, tensor in end.items())
    audit = "\n".join(found.metrics["audit"])
    for line in (
        "ratio policy / reference: 1.000000",
        "TRL's rewards/chosen before the first update: 0.000000",
        "weights move: 28 of 28",
        "backbone frozen",
        "EOS inside the loss: 12 of 12",
    ):
        assert line in audit
    assert not list(found.path.rglob("checkpoint*")), "the artifact holds training state"


@pytest.mark.parametrize(("method", "precision"), [("lora", "nf4"), ("vera", "fp32")])
def test_the_reference_is_the_sft_adapter_and_not_the_bare_model(
    method: str, precision: str, tiny_folder: Path, data: DataConfig, tmp_path: Path
) -> None:
    """As TRL itself runs it, on 4-bit weights too, and with a method whose parameters' names TRL
    does not copy.
    """
    runtime = runtime_of(tiny_folder, tmp_path, method, precision=precision)
    of_method = Made(runtime, data)
    seen: dict[str, Any] = {}
    train = trl_trainer.Sealed

    class Looking(train):  # type: ignore[misc,valid-type]
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            if not seen:
                for name, role in (("policy", "default"), ("reference", "ref"), ("bare", None)):
                    with torch.no_grad(), use_adapter(model, role):
                        kept = {k: inputs[k] for k in ("input_ids", "attention_mask")}
                        seen[name] = model(**kept).logits
                seen["back"] = model(**kept).logits
                seen["learns"] = {n for n, p in model.named_parameters() if p.requires_grad}
            return super().compute_loss(model, inputs, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_trainer, "Sealed", Looking)
        found = of_method.trained("DPOTrainer")
    assert steps_of(found)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert torch.equal(seen["reference"], seen["policy"])
    assert torch.equal(seen["back"].detach(), seen["policy"]), "the policy did not come back"
    assert (seen["bare"] - seen["policy"]).abs().max() > 1e-3
    assert all(".default" in name for name in seen["learns"]) and seen["learns"]


def test_trls_reference_gives_the_log_probs_of_the_sft_adapter(
    made: Made, trainers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After training too. What enters TRL's loss, beside what prefloop's own stages compute."""
    backbone, seen = made.runtime.backbone, {}
    original = trainer_class("DPOTrainer")._compute_loss

    def compute(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        out = original(self, model, inputs, *rest)
        of = self._metrics["train"]
        reference = of["logps/chosen"][-1] - of["rewards/chosen"][-1] / 0.2
        seen.update(inputs=inputs, reference=reference, policy=of["logps/chosen"][-1])
        return out

    monkeypatch.setattr(trainer_class("DPOTrainer"), "_compute_loss", compute)
    made.trained("DPOTrainer", PAIRS | {"beta": 0.2})
    inputs = seen["inputs"]
    rows = len(inputs["input_ids"]) // 2
    ours = []
    backbone.add_role("again", start=made.of("sft").path)
    for ids, mask, learnt in zip(
        inputs["input_ids"][:rows],
        inputs["attention_mask"][:rows],
        inputs["completion_mask"][:rows],
        strict=True,
    ):
        kept = ids[mask.bool()].tolist()
        start = int(learnt.argmax())
        pack = packs([Document(kept[:start], [kept[start:]], [0])], budget=1)[0]
        ours.append(float(logps_R(backbone, pack, "again", 1.0).sum()))
        bare = float(logps_R(backbone, pack, None, 1.0).sum())
        assert abs(bare - ours[-1]) > 1e-2
    backbone.drop_role("again")
    assert seen["reference"] == pytest.approx(sum(ours) / rows, abs=1e-4)
    assert abs(seen["policy"] - seen["reference"]) > 1e-2, "the last step is the first"


def test_dpo_ends_in_the_weights_of_prefloops_own(made: Made) -> None:
    """All pairs in every step, three steps, the same optimizer and schedule."""
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
    ours = made.run(Preference("dpo", PreferenceConfig(batch_pairs=6, epochs=3.0, optim=optim)))
    theirs = made.trained(
        "DPOTrainer", PAIRS | {"per_device_train_batch_size": 6, "num_train_epochs": 3}
    )
    losses = [[step["loss"] for step in steps_of(found)] for found in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 3
    start, mine, other = map(adapter, (made.of("sft"), ours, theirs))
    for name, tensor in mine.items():
        moved = (tensor - start[name]).norm()
        assert (tensor - other[name]).norm() < 0.02 * moved, name


def test_the_backbone_is_as_it_was(made: Made) -> None:
    backbone = made.runtime.backbone
    sft = made.of("sft").path
    pack = packs([Document([8, 9, 10], [[11, 12]], [0])], budget=1)[0]

    def state() -> tuple[Any, ...]:
        backbone.add_role("look", start=sft)
        logps = logps_R(backbone, pack, "look", 1.0).tolist()
        backbone.drop_role("look")
        model, bare = backbone.model, backbone.causal_lm
        own = [
            {"forward", "set_adapter", "_original_forward"} & set(vars(m)) for m in (model, bare)
        ]
        return (
            logps,
            own,
            model.active_adapter,
            set(model.peft_config),
            bare.generation_config,
            bare.config.pad_token_id,
            any(m.training for m in model.modules()),
            any(p.requires_grad for p in model.parameters()),
            backbone.chat.tokenizer.pad_token,
            backbone.frozen_digest(),
        )

    before = state()
    made.trained("DPOTrainer", PAIRS | {"beta": 0.3})
    made.trained("GRPOTrainer", SAMPLED | {"beta": 0.2})
    assert state() == before and not backbone.roles


@pytest.mark.parametrize("trainer", ["CPOTrainer", "ORPOTrainer", "RLOOTrainer", "GMPOTrainer"])
def test_other_trainers_by_name(trainer: str, made: Made) -> None:
    found = made.trained(trainer, PAIRS if TRAINERS[trainer].learns_from == "pairs" else SAMPLED)
    assert found.metrics["steps"] >= 2 and found.manifest.stage == slot_of(f"trl:{trainer}")
    audit = "\n".join(found.metrics["audit"])
    assert "weights move" in audit
    assert ("ratio policy / reference" in audit) == TRAINERS[trainer].reference


def test_every_public_trainer_of_trl_is_a_stage_or_refused_with_a_reason() -> None:
    import trl
    from trl.trainer.base_trainer import _TELEMETRY_TRAINERS

    stable = {name for name in trl._import_structure["trainer"] if name.endswith("Trainer")}
    assert {*stable, *_TELEMETRY_TRAINERS} == {*TRAINERS, *REFUSED}
    for name in TRAINERS:
        assert trainer_class(name).__name__ == name


@pytest.mark.parametrize("tokenizer", ["bos", "turn-end"])
def test_rows_are_the_token_ids_that_prefloops_own_stages_learn(
    tokenizer: str, data: DataConfig, tmp_path: Path, trainers: list[Any]
) -> None:
    """Also where the template ends turns in another token than the tokenizer's EOS."""
    model = tiny_model(tmp_path / "model", tokenizer=tokenizer)
    of_model = Made(runtime_of(model, tmp_path / "runs"), data)
    for trainer in ("DPOTrainer", "KTOTrainer", "CPOTrainer", "SFTTrainer"):
        of_model.trained(trainer)
    of_model.trained("GRPOTrainer", SAMPLED)
    dpo, kto, cpo, sft, grpo = trainers
    chat = of_model.runtime.backbone.chat
    prompt = [Message("user", "Say 0")]
    encoder = Encoder(chat, 64)
    start = encoder.prompt("0", prompt)
    good, bad = (
        encoder.response("0", prompt, Response(text), len(start)).ids
        for text in ("good 0", "bad, 0")
    )
    assert good[-1] == chat.stop_id
    wanted = {"prompt_ids": start, "chosen_ids": good, "rejected_ids": bad}
    assert dpo.train_dataset[0] == wanted
    batch = dpo.data_collator([dpo.train_dataset[0]])
    assert batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist() == start + good
    assert int(batch["completion_mask"][0].sum()) == len(good)

    rows = [row for row in kto.train_dataset if row["prompt_ids"] == start]
    assert sorted((row["completion_ids"], row["label"]) for row in rows) == sorted(
        [(good, True), (bad, False)]
    )
    row = cpo.train_dataset[0]
    assert row["chosen_input_ids"] == start + good and row["rejected_input_ids"] == start + bad
    assert row["chosen_labels"] == [-100] * len(start) + good

    learnt = encoder.response("0", prompt, Response("It is 0."), len(start)).ids
    assert sft.train_dataset[0]["input_ids"] == start + learnt
    assert sft.train_dataset[0]["labels"] == [-100] * len(start) + learnt

    asked = grpo.train_dataset[0]["prompt"]
    assert grpo._tokenize_prompts([asked])[0] == [start]
    assert grpo.eos_token_ids == [chat.stop_id]
    assert grpo.generation_config.eos_token_id == chat.stop_id
    assert grpo.generation_config.temperature == 1.0
    assert grpo.generation_config.max_new_tokens == 4


def test_ktos_kl_is_estimated_from_responses_to_other_prompts(
    made: Made, trainers: list[Any]
) -> None:
    found = made.trained("KTOTrainer", PAIRS | {"per_device_train_batch_size": 4})
    [trainer] = trainers
    own: dict[tuple[int, ...], list[list[int]]] = {}
    for row in trainer.train_dataset:
        own.setdefault(tuple(row["prompt_ids"]), []).append(row["completion_ids"])
    assert len(trainer.train_dataset) == 12 and len(own) == 6
    for row in trainer.train_dataset:
        assert row["KL_completion_ids"] not in own[tuple(row["prompt_ids"])]
    assert (found.metrics["up"], found.metrics["down"]) == (6, 6)
    assert steps_of(found)[0]["loss"] == pytest.approx(0.5, abs=1e-6)


def test_mismatched_responses_are_turned_as_far_as_prompts_repeat() -> None:
    assert trl_trainer.mismatch("abcd") == (1, 0)
    assert trl_trainer.mismatch("aabb") == (2, 0), "neighbors share a prompt"
    assert trl_trainer.mismatch("aab") == (1, 1) and trl_trainer.mismatch("a") == (1, 1)
    rows = [[{"of": prompt, "n": n} for n in range(2)] for prompt in range(3)]
    order = [row["of"] for row in dealt(rows, seed=1)]
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]


def test_a_trainer_that_samples_is_rewarded_by_functions_and_by_the_reward_model(
    made: Made, tmp_path: Path, trainers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def length(prompt, response):\n"
        "    assert prompt.prompt[0].content.startswith('Say')\n"
        "    return float(len(response))\n"
    )
    weights = {"reward_model": 1.0, f"{file}:length": 0.5, "think_format_reward": 2.0}
    found = made.trained("GRPOTrainer", SAMPLED, rewards=weights)
    [trainer] = trainers
    assert trainer.reward_func_names == ["reward_model", "length", "think_format_reward"]
    assert trainer.reward_weights.tolist() == [1.0, 0.5, 2.0]
    for step in steps_of(found):
        parts = [step[f"rewards/{name}/mean"] for name in trainer.reward_func_names]
        assert step["reward_mean"] == pytest.approx(
            parts[0] + 0.5 * parts[1] + 2 * parts[2], abs=1e-5
        )
        assert parts[1] > 0 and math.isfinite(parts[0])
    assert found.metrics["reward_mean"] == steps_of(found)[-1]["reward_mean"]
    assert "TRL's kl before the first update: 0.000000" in "\n".join(found.metrics["audit"])
    assert "reward" in found.manifest.inputs

    alone = Trl("GRPOTrainer", TrlConfig(rewards={f"{file}:length": 1.0}), made.data)
    assert alone.inputs == ("sft",)
    edited = alone.identity(made.runtime)
    file.write_text(file.read_text().replace("len(response)", "-len(response)"))
    assert Trl("GRPOTrainer", alone.config, made.data).identity(made.runtime) != edited


def test_rewards_that_are_all_alike_are_no_training(made: Made, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text("def flat(prompt, response):\n    return 1.0\n")
    with pytest.raises(AuditError, match="no step had both a gradient and a learning rate"):
        made.trained(
            "GRPOTrainer", SAMPLED | {"beta": 0.0}, rewards={f"{tmp_path / 'flat.py'}:flat": 1.0}
        )
    assert not made.runtime.backbone.roles


def test_ties_are_left_out_and_votes_decide(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trainers: list[Any]
) -> None:
    files = small_data(tmp_path)
    votes: list[list[Any]] = [[0, 1], [1, 1, 0], [0, "tie"], ["tie"]]
    write_jsonl(
        tmp_path / "c.jsonl",
        [
            Comparison(
                str(i),
                [Message("user", f"Say {i}")],
                [Response("first"), Response("second")],
                [Vote(f"a{k}", choice) for k, choice in enumerate(choices)],
            )
            for i, choices in enumerate(votes)
        ],
    )
    found = Made(runtime_of(tiny_folder, tmp_path / "runs"), files).trained("DPOTrainer")
    assert (found.metrics["pairs"], found.metrics["ties"]) == (2, 2)
    decode = trainers[0].processing_class.decode
    assert [
        decode(row["chosen_ids"], skip_special_tokens=True) for row in trainers[0].train_dataset
    ] == ["second", "first"]
    said = capsys.readouterr().out
    assert "left out: 2 ties" in said and "TRL takes no soft labels" in said

    write_jsonl(
        tmp_path / "c.jsonl",
        [
            Comparison(
                "0", [Message("user", "q")], [Response("a"), Response("b")], [Vote("x", "tie")]
            )
        ],
    )
    with pytest.raises(DataError, match="no pair is left for TRL's trainer: 1 ties"):
        Made(runtime_of(tiny_folder, tmp_path / "again"), files).trained("DPOTrainer")


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Calls something once, in the update after so many, its gradients known."""
    with monkeypatch.context() as patch:

        def arrange(updates: int, act: Callable[[], None]) -> None:
            left = [act]
            before = Moving.on_pre_optimizer_step

            def own(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> Any:
                if state.global_step == updates and left:
                    left.pop()()
                return before(self, args, state, *rest, **more)

            patch.setattr(Moving, "on_pre_optimizer_step", own)

        yield arrange


@pytest.mark.parametrize(
    ("trainer", "args"),
    [("DPOTrainer", PAIRS), ("KTOTrainer", PAIRS), ("GRPOTrainer", SAMPLED | {"max_steps": 4})],
)
def test_a_run_that_is_asked_to_end_finishes_its_step_and_goes_on_to_the_same_bytes(
    trainer: str,
    args: dict[str, Any],
    made: Made,
    tiny_folder: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = made.trained(trainer, args, checkpoint_every=1000)
    stage = Trl(trainer, TrlConfig(args=args, checkpoint_every=1000), made.data)
    elsewhere = runtime_of(tiny_folder, tmp_path)
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Ended, match="SIGTERM"), heeding():
        made.run(stage, elsewhere)
    total = whole.metrics["steps"]
    assert f"checkpoint of step 2 of {total} written" in capfd.readouterr().err
    (work,) = (elsewhere.store.root / "work").glob(f"{stage.name}-*")
    assert [p.name for p in work.rglob("checkpoint-*")] == ["checkpoint-2"]
    assert not list(elsewhere.store.root.glob(f"{stage.name}-*")), "half an artifact is there"
    again = made.run(stage, elsewhere)
    assert again.status == "resumed"
    ours, theirs = adapter(again), adapter(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert [step["step"] for step in steps_of(again)] == list(range(1, total + 1))


def test_rewards_that_are_all_alike_are_no_training_in_a_run_that_goes_on_either(
    made: Made, tiny_folder: Path, tmp_path: Path, at_step: Callable[..., None]
) -> None:
    (tmp_path / "flat.py").write_text("def flat(prompt, response):\n    return 1.0\n")
    args = SAMPLED | {"beta": 0.0, "max_steps": 4}
    config = TrlConfig(args=args, rewards={f"{tmp_path / 'flat.py'}:flat": 1.0})
    stage, elsewhere = Trl("GRPOTrainer", config, made.data), runtime_of(tiny_folder, tmp_path)
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Ended, match="SIGTERM"), heeding():
        made.run(stage, elsewhere)
    with pytest.raises(AuditError, match="no step had both a gradient and a learning rate"):
        made.run(stage, elsewhere)


def test_a_reward_that_is_not_finite_names_its_prompts_and_is_not_left_out() -> None:
    backbone = SimpleNamespace(scoring_tokens=64, device=torch.device("cpu"))
    scores = {7: 1.0, 8: float("nan")}

    def scores_K_B(pack: Pack) -> Tensor:
        last_B = pack.tokens_N[pack.last_B].tolist()
        return torch.tensor([[scores[token] for token in last_B]])

    reward: Any = SimpleNamespace(backbone=backbone, scores_K_B=scores_K_B)
    ids = {"a": [1, 2], "b": [3]}
    functions = RewardFunctions({"reward_model": 1.0})
    (scored,) = functions.functions({}, ids, reward, contextlib.nullcontext, str)
    assert scored(completion_ids=[[7], [5, 7]], id=["a", "b"]) == [1.0, 1.0]
    with pytest.raises(RewardError, match="not finite for 1 responses, to prompts b"):
        scored(completion_ids=[[7], [8]], id=["a", "b"])


def test_a_damaged_checkpoint_is_passed_over(
    made: Made,
    tiny_folder: Path,
    tmp_path: Path,
    at_step: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def die() -> None:
        raise OSError("killed")

    config = TrlConfig(args=PAIRS | {"num_train_epochs": 2}, checkpoint_every=1)
    stage = Trl("DPOTrainer", config, made.data)
    whole = made.run(Trl("DPOTrainer", config, made.data))
    elsewhere = runtime_of(tiny_folder, tmp_path)
    at_step(4, die)
    with pytest.raises(OSError, match="killed"):
        made.run(stage, elsewhere)
    (work,) = (elsewhere.store.root / "work").glob("trl_dpo-*")
    places = sorted(p for p in work.rglob("checkpoint-*") if p.is_dir())
    assert [p.name for p in places] == ["checkpoint-3", "checkpoint-4"]
    (places[1] / "learnt.safetensors").write_bytes(b"nothing")
    again = made.run(stage, elsewhere)
    said = capsys.readouterr().out
    assert "checkpoint checkpoint-4 is damaged" in said and "goes on from step 3" in said
    ours, theirs = adapter(again), adapter(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_host_of_two_gpus_trains_on_one(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else transformers puts nn.DataParallel around the model, which TRL refuses."""

    def devices(self: TrainingArguments) -> torch.device:
        self._n_gpu = 2
        return torch.device("cpu")

    shown = functools.cached_property(devices)
    shown.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", shown)
    found = trl_arguments.arguments("DPOTrainer", {}, tmp_path, 5, made.runtime)
    assert found.n_gpu == 1 and found.device.type == "cpu" and found.n_gpu == 1
    assert found.train_batch_size == found.per_device_train_batch_size


def test_a_key_holds_the_trainers_arguments(made: Made) -> None:
    def key(trainer: str = "DPOTrainer", **config: Any) -> str:
        stage = Trl(trainer, TrlConfig(**config), made.data)
        return stage.key(made.runtime, {slot: made.of(slot) for slot in stage.inputs})

    assert key() == key(checkpoint_every=9)
    assert key(args={"learning_rate": "1e-4"}) == key(args={"learning_rate": 1e-4})
    assert len({key(), key(args={"beta": 0.2}), key("CPOTrainer")}) == 3


REFUSALS = [
    ("DPOTrianer", {}, r"unknown TRL trainer 'DPOTrianer' \(did you mean 'DPOTrainer'\?"),
    ("RewardTrainer", {}, "makes a reward model and no policy: --algo reward"),
    ("OnlineDPOTrainer", {}, "its reference is the model without its adapter"),
    (
        "DPOTrainer",
        {"args": {"bata": 0.1}},
        "DPOConfig has no argument 'bata'.*did you mean 'beta'",
    ),
    ("DPOTrainer", {"args": {"beta": "much"}}, r"trl.args.beta: .*valid number.*'much'"),
    ("DPOTrainer", {"args": {"output_dir": "x"}}, "trl.args.output_dir is not for the trainer"),
    ("DPOTrainer", {"args": {"report_to": "wandb"}}, "name trackers with --trackers"),
    ("DPOTrainer", {"args": {"push_to_hub": True}}, "prefloop export"),
    ("DPOTrainer", {"args": {"hub_token": "x"}}, "prefloop export"),
    ("DPOTrainer", {"args": {"seed": 1}}, "say --seed"),
    ("GRPOTrainer", {"args": {"temperature": 1.0}}, "say generation.temperature"),
    ("GRPOTrainer", {"args": {"model_init_kwargs": {}}}, "the model is the backbone"),
    ("GRPOTrainer", {"args": {"num_generations": 5}}, r"GRPOConfig refuses them: .*divisible"),
    ("GRPOTrainer", {"rewards": {"lenth_reward": 1.0}}, "'lenth_reward' is neither reward_model"),
    ("GRPOTrainer", {"rewards": {"x.py:a b": 1.0}}, "trl.rewards: 'x.py:a b' is neither"),
    (
        "DPOTrainer",
        {"rewards": {"reward_model": 1.0}},
        "DPOTrainer learns from pairs: leave it out",
    ),
    ("KTOTrainer", {"args": {"train_sampling_strategy": "random"}}, "KTO's KL is estimated from"),
]


@pytest.mark.parametrize(("trainer", "config", "said"), REFUSALS)
def test_what_cannot_work_is_refused_before_anything_runs(
    trainer: str, config: dict[str, Any], said: str, data: DataConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        Trl(trainer, TrlConfig(**config), data).preflight()
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_an_adapter_method_that_trl_cannot_train_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.prompts is not set, and TRL's GRPOTrainer"):
        Trl("GRPOTrainer", TrlConfig(), DataConfig()).preflight()
    config = RLHFConfig(algo="trl:DPOTrainer")
    for method in ("pissa", "full", "lora-fa", "bitfit", "prompt"):
        config.backbone.adapter.method = method
        assert method not in METHODS
        with pytest.raises(ConfigError, match=f"adapter.method {method}: TRL knows PEFT's layers"):
            algorithm(config)


def test_a_run_has_the_stages_that_the_trainer_needs(data: DataConfig) -> None:
    def names(algo: str, *flags: str) -> list[str]:
        files = [
            part
            for field in ("demonstrations", "prompts", "comparisons")
            for part in (f"--data.{field}", str(getattr(data, field)))
        ]
        config = parse(["--algo", algo, *files, *flags], "rlhf.py", "")
        return [stage.name for stage in compose(config)]

    file = ("--label.source", "file")
    assert names("trl:DPOTrainer", *file) == ["sft", "label", "reward", "trl_dpo", "evaluate"]
    assert names("trl:GRPOTrainer", *file) == ["sft", "label", "reward", "trl_grpo", "evaluate"]
    own = ("--trl.rewards", "think_format_reward", "1.0")
    assert names("trl:GRPOTrainer", *file, *own) == ["sft", "trl_grpo", "evaluate"]
    assert names("trl:SFTTrainer", *file) == ["sft", "trl_sft", "evaluate"]
    twice = names("trl:DPOTrainer", "--rounds", "2")
    assert twice[-5:] == ["choose-2", "label-2", "reward-2", "trl_dpo-2", "evaluate"]
    assert reward_model(RLHFConfig(algo="trl:GRPOTrainer", gold="x.py:y")) == "needed"
    [line] = [
        line for line in uncounted(RLHFConfig(algo="trl:DPOTrainer")) if "TRL's DPOTrainer" in line
    ]
    assert "no model of its memory and time" in line


def test_the_documented_command_stands_beside_prefloops_dpo_in_one_table(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_folder)
    run_pipeline(config, "--algo", "dpo")
    [words] = [
        arguments
        for page, program, arguments in documents.commands()
        if page == "docs/extending.md" and program == "rlhf.py" and "trl:DPOTrainer" in arguments
    ]
    output = run_pipeline(config, *words[2:])
    found = summary(config)
    assert {"sft", "dpo", "trl_dpo"} <= set(found["results"]) and found["algo"] == "trl:DPOTrainer"
    assert found["results"]["trl_dpo"]["n_responses"] == 24
    assert statuses(config)["sft"] == "reused" and "audit trl_dpo: weights move" in output
    assert "trl_dpo" in (tmp_path / "runs" / "t" / "report.html").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    export("runs/t:trl_dpo", Path("exported"))
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "TRL's DPOTrainer on pairs" in card and "args.learning_rate" in card
    described = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA"
    opened = open_policies(["runs/t:trl_dpo", "runs/t:sft"])
    assert set(opened.roles) == {"runs/t:trl_dpo", "runs/t:sft"}
