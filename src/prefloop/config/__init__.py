"""Every setting of the pipeline: plain dataclasses, one docstring a field, validated strictly.

YAML files hold exactly these fields and the command line overrides each of them (``--ppo.kl.coef
0.05``). Names follow TRL and transformers where the meaning is the same.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from prefloop.config.base import STRICT, DataSource, aside, is_config
from prefloop.config.common import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    OptimConfig,
    RopeConfig,
)
from prefloop.config.judge import JudgeConfig
from prefloop.config.names import Named, Place, RunName
from prefloop.config.ppo import AlarmConfig, KLConfig, PPOConfig
from prefloop.config.ranges import Few, Seed
from prefloop.config.stages import (
    AnnotatorConfig,
    BenchConfig,
    EvaluateConfig,
    LabelConfig,
    PreferenceConfig,
    RewardConfig,
    SampleConfig,
    SFTStageConfig,
)
from prefloop.config.trl import TrlConfig


@dataclass(config=STRICT)
class RLHFConfig:
    """From demonstrations to a judged, aligned model; every stage is reused when nothing it depends
    on has changed.
    """

    run: RunName = "run"
    """Name of the run: results go to <output>/<run>."""
    output: Place = Path("runs")
    """Folder for runs; the artifact store is <output>/.store."""
    preset: str | None = None
    """Guide values of the field for a task, in the place of the defaults: chat, classification,
    reasoning or domain; what this file or a flag says wins. 'prefloop presets' prints them with
    their sources.
    """
    algo: str = "ppo"
    """How the policy learns: on rollouts ppo, grpo, rloo, reinforce; on pairs dpo, cdpo, robust,
    ipo, hinge, apo_zero, apo_down, orpo, simpo, cpo; on thumbs kto; trl: and the name of a class,
    such as trl:DPOTrainer, one of TRL's trainers; reward stops after the reward model, sft after
    SFT, measured by sft.eval_share and bench alone.
    """
    seed: Seed = 0
    """Seed of everything random, 0 or more."""
    rollout: Literal["vllm", "server", "transformers"] = "vllm"
    """Engine that samples responses: vLLM in this process, a vLLM server (generation.server), or
    transformers, the slow one that works everywhere.
    """
    labels: str | None = None
    """Where votes come from, in short: simulated, file, argilla or argilla://workspace/dataset;
    sets label.source, label.workspace and label.dataset.
    """
    rounds: Few = 1
    """Rounds of sampling, labelling and training; later rounds sample from the policy before and
    put the pairs to the vote that the reward model is least sure of.
    """
    simulate: bool = False
    """With label.source argilla: the simulated annotators (label.annotators) vote through Argilla,
    so that nobody needs to be waited for.
    """
    gold: Named | None = None
    """Disclosed scorer 'file.py:function' for simulated votes and for the final table; never seen
    by the reward model.
    """
    notes: list[str] = field(default_factory=list)
    """Sentences that the report prints under 'What these numbers cannot see'."""
    notes_of: dict[str, list[str]] = field(default_factory=dict)
    """Such sentences about a data file or a gold scorer, under its name as 'data' or 'gold' has it:
    printed where the run reads that very file.
    """
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = aside(default_factory=list)
    """Where the steps of every training stage are logged too; wandb stays offline unless WANDB_MODE
    says otherwise.
    """
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTStageConfig = field(default_factory=SFTStageConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    trl: TrlConfig = field(default_factory=TrlConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)

    def disclosed(self) -> list[str]:
        """``notes``, and those in ``notes_of`` about what this run reads."""
        data = self.data
        files = (data.demonstrations, data.comparisons, data.prompts, data.eval_prompts)
        read = {str(file) for file in files if file is not None} | (
            {self.gold} if self.gold else set()
        )
        read |= {self.gold.rpartition(":")[0]} if self.gold else set()
        return [
            *self.notes,
            *(note for name, notes in self.notes_of.items() if name in read for note in notes),
        ]


__all__ = [
    "AdapterConfig",
    "AlarmConfig",
    "AnnotatorConfig",
    "BackboneConfig",
    "BenchConfig",
    "DataConfig",
    "DataSource",
    "EvaluateConfig",
    "GenerationConfig",
    "JudgeConfig",
    "KLConfig",
    "LabelConfig",
    "OptimConfig",
    "PPOConfig",
    "PreferenceConfig",
    "RLHFConfig",
    "RewardConfig",
    "RopeConfig",
    "SFTStageConfig",
    "SampleConfig",
    "TrlConfig",
    "is_config",
]
