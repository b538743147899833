"""Every setting of the pipeline, as plain dataclasses with a docstring for each field and strict
validation.

YAML files hold exactly these fields, and a flag of the command line overrides each of them
(``--ppo.kl.coef 0.05``). Names follow TRL and transformers where the meaning is the same.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from prefloop.config.base import STRICT, DataSource, Named, Place, RunName, aside, is_config
from prefloop.config.common import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    OptimConfig,
    RopeConfig,
)
from prefloop.config.judge import JudgeConfig
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
    """From demonstrations to a judged, aligned model. A stage runs again only when something it
    depends on has changed.
    """

    run: RunName = "run"
    """Name of the run. Its results go to <output>/<run>."""
    output: Place = Path("runs")
    """Folder for runs. The artifact store is <output>/.store."""
    preset: str | None = None
    """Recommended values for a task, used in place of the defaults: chat, classification, reasoning
    or domain. This file and flags override them. 'prefloop presets' prints them with their sources.
    """
    algo: str = "ppo"
    """How the policy learns. From its own samples: ppo, grpo, rloo, reinforce. From pairs: dpo,
    cdpo, robust, ipo, hinge, apo_zero, apo_down, orpo, simpo, cpo. From thumbs: kto. trl: and the
    name of a class, such as trl:DPOTrainer, runs one of TRL's trainers. reward stops after the
    reward model. sft stops after SFT, which sft.eval_share and bench then measure.
    """
    seed: Seed = 0
    """Seed of everything random, 0 or more."""
    rollout: Literal["vllm", "server", "transformers"] = "vllm"
    """Engine that samples responses: vLLM in this process, a vLLM server (generation.server), or
    transformers, which is slow and works everywhere.
    """
    labels: str | None = None
    """Where votes come from: simulated, file, argilla or argilla://workspace/dataset. A short form
    for label.source, label.workspace and label.dataset.
    """
    rounds: Few = 1
    """Rounds of sampling, labeling and training. Later rounds sample from the policy of the round
    before, and put those pairs to the vote of which the reward model is least sure.
    """
    simulate: bool = False
    """With label.source argilla: let the simulated annotators (label.annotators) vote through
    Argilla, so that the run waits for nobody.
    """
    gold: Named | None = None
    """Scorer 'file.py:function' for simulated votes and for the final table. The report names it,
    and the reward model never sees it.
    """
    notes: list[str] = field(default_factory=list)
    """Sentences that the report prints under 'What these numbers cannot see'."""
    notes_of: dict[str, list[str]] = field(default_factory=dict)
    """Sentences for the same section, by the data file or gold scorer that they are about, named as
    in 'data' or 'gold'. The report prints those about files that the run reads.
    """
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = aside(default_factory=list)
    """Trackers that log the steps of every training stage. wandb stays offline unless WANDB_MODE
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
        """``notes``, and the entries of ``notes_of`` about the files and the scorer of this run."""
        data = self.data
        files = (data.demonstrations, data.comparisons, data.prompts, data.eval_prompts)
        read = {str(file) for file in files if file is not None}
        if self.gold:
            read |= {self.gold, self.gold.rpartition(":")[0]}
        about = (notes for name, notes in self.notes_of.items() if name in read)
        return [*self.notes, *(note for notes in about for note in notes)]


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
