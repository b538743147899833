"""Settings that leave nothing to train, or cannot work together, are refused; no policy without a
step is compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loop_run import ROOT, write_config

from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    LabelConfig,
    PPOConfig,
    SFTStageConfig,
)
from prefloop.errors import AuditError, ConfigError, PrefloopError
from prefloop.pipeline.stages.kto import KTO
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.ppo import PPO
from prefloop.pipeline.stages.preference import Preference
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.pipeline.stages.sft import SFT
from prefloop.rollouts.check import check
from prefloop.runs.runtime import Runtime
from prefloop.training.audit import Audit
from prefloop.training.batches import epochs_of_groups


def test_a_policy_without_a_step_fails_its_audit() -> None:
    audit = Audit("dpo")
    audit.stepped(1)
    with pytest.raises(AuditError, match=r"optimizer steps: 0\. Nothing was trained"):
        audit.stepped(0)


def test_no_stage_gives_out_what_took_no_step(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"Good {i}.", "rejected": f"Bad {i}."}
        for i in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(comparisons=tmp_path / "pairs.jsonl", demonstrations=tmp_path / "pairs.jsonl")
    backbone = BackboneConfig(
        model=str(tiny_folder), precision="fp32", max_length=128, adapter=AdapterConfig(r=4)
    )
    runtime = Runtime(backbone, rollout="transformers", output=tmp_path / "runs")
    sft = SFT(SFTStageConfig(), data).run(runtime)
    votes = Label(LabelConfig(source="file"), data).run(runtime)
    for name, stage in (
        ("reward", RewardModel()),
        ("preference", Preference("dpo")),
        ("kto", KTO()),
    ):
        monkeypatch.setattr(f"prefloop.pipeline.stages.{name}.epochs_of_groups", lambda *_: [])
        with pytest.raises(AuditError, match=r"optimizer steps: 0\. Nothing was trained"):
            stage.run(runtime, sft=sft, comparisons=votes)


def test_epochs_of_less_than_one_prompt_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"preference\.epochs is 0\.001: of 40 prompts that is less than one.*give 0\.025 or"
            r" more"
        ),
    ):
        epochs_of_groups(40, lambda _: 1, 8, 0.001, 0, "preference.epochs")
    assert epochs_of_groups(40, lambda _: 1, 1, 0.025, 0) == [
        [epochs_of_groups(40, lambda _: 1, 1, 1.0, 0)[0][0]]
    ]


def test_a_rest_of_less_than_one_prompt_makes_no_step_of_its_own() -> None:
    assert epochs_of_groups(4, lambda _: 1, 2, 1.001, 0) == epochs_of_groups(
        4, lambda _: 1, 2, 1.0, 0
    )
    assert len(epochs_of_groups(4, lambda _: 1, 2, 1.5, 0)) == 3
    assert len(epochs_of_groups(4, lambda _: 1, 2, 3.0, 0)) == 6


def test_demonstrations_are_counted_before_anything_is_loaded(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say one.", "response": "One."}\n' * 4)
    data = DataConfig(demonstrations=rows)
    with pytest.raises(
        ConfigError, match=r"sft\.epochs is 0\.2: of 4 demonstrations that is less than one"
    ):
        SFT(SFTStageConfig(epochs=0.2), data).preflight()
    SFT(SFTStageConfig(epochs=0.25), data).preflight()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"minibatches": 5, "prompts_per_step": 4},
            "ppo.minibatches is 5, .* ppo.prompts_per_step 4 has no more prompts",
        ),
        (
            {"value_warmup": 6, "steps": 6},
            "ppo.value_warmup is 6 of ppo.steps 6: .* the policy in none",
        ),
    ],
)
def test_rollouts_that_teach_the_policy_nothing_are_refused(
    settings: dict[str, int], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        PPO(PPOConfig(**settings))  # type: ignore[arg-type]


def test_algorithms_without_a_critic_have_no_warm_up_to_refuse() -> None:
    PPO(PPOConfig(value_warmup=6, steps=6), algo="grpo")


def test_a_response_must_leave_room_for_its_prompt() -> None:
    with pytest.raises(
        ConfigError, match=r"generation\.max_new_tokens is 64 and backbone\.max_length 64"
    ):
        check("transformers", GenerationConfig(max_new_tokens=64), BackboneConfig(max_length=64))
    check("transformers", GenerationConfig(max_new_tokens=63), BackboneConfig(max_length=64))


def test_votes_need_annotators_and_two_candidates(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "pipelines"))
    from prefloop import compose
    from prefloop.config.load import parse

    gold = f"{ROOT / 'examples' / 'demo' / 'gold.py'}:score"
    with pytest.raises(ConfigError, match=r"label\.annotators is empty"):
        Label(LabelConfig(), gold=gold).preflight()
    config = write_config(tmp_path, tiny_folder, sample={"candidates": 1})
    with pytest.raises(PrefloopError, match=r"sample\.candidates is 1"):
        compose(parse(["--config", str(config)], "", ""))
