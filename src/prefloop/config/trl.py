"""TRL's trainers by name: what each learns from, and the settings of a stage that runs one.

Nothing of TRL is imported here: importing it takes seconds, and ``--help`` reads this module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from prefloop.base.redact import short
from prefloop.config.base import STRICT, aside
from prefloop.config.ranges import Count, Weight
from prefloop.config.stages import Aggregation
from prefloop.errors import ConfigError, among

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", re.ASCII)
PREFIX = "trl:"
"""What --algo says before the name of a trainer."""
REWARD_MODEL = "reward_model"
"""What trl.rewards calls the run's own reward model."""
METHODS = (
    "lora",
    "rslora",
    "dora",
    "eva",
    "vera",
    "randlora",
    "ia3",
    "oft",
    "boft",
    "hra",
    "miss",
)
"""Adapter methods that TRL can train: PEFT's layers, of which every parameter learns at one rate
and nothing else happens in a step.
"""


@dataclasses.dataclass(frozen=True)
class TrlTrainer:
    """A trainer of TRL that makes a policy."""

    learns_from: Literal["pairs", "thumbs", "prompts", "demonstrations"]
    """Kind of the rows; with prompts it samples answers, which reward functions score."""
    reference: bool = True
    """Whether its loss may compare with a reference."""
    module: str = "trl"
    """Where the trainer and its configuration (``DPOConfig`` of ``DPOTrainer``) are."""


TRAINERS: Mapping[str, TrlTrainer] = {
    "DPOTrainer": TrlTrainer("pairs"),
    "CPOTrainer": TrlTrainer("pairs", reference=False, module="trl.experimental.cpo"),
    "ORPOTrainer": TrlTrainer("pairs", reference=False, module="trl.experimental.orpo"),
    "KTOTrainer": TrlTrainer("thumbs"),
    "GRPOTrainer": TrlTrainer("prompts"),
    "RLOOTrainer": TrlTrainer("prompts"),
    "GMPOTrainer": TrlTrainer("prompts", module="trl.experimental.gmpo"),
    "SFTTrainer": TrlTrainer("demonstrations", reference=False),
}
"""Trainers of TRL 1.16 that learn from what a run has."""

_TEACHER = "it learns from a second, larger model, and a run has one model"
_SERVER = "it hands whole weights to a vLLM server of its own, and a run trains an adapter"
REFUSED: Mapping[str, str] = {
    "RewardTrainer": "it makes a reward model and no policy: --algo reward trains prefloop's own",
    "DistillationTrainer": _TEACHER,
    "GKDTrainer": _TEACHER,
    "GOLDTrainer": _TEACHER,
    "IWOPDTrainer": _TEACHER,
    "ServerDistillationTrainer": _TEACHER,
    "AsyncDistillationTrainer": _TEACHER,
    "SDFTTrainer": "its teacher is the model without its adapter, and not the SFT model",
    "SDPOTrainer": "its teacher is the model without its adapter, and not the SFT model",
    "OnlineDPOTrainer": "its reference is the model without its adapter, and not the SFT model",
    "A2POTrainer": "it copies the whole model for its reference, and a run keeps one model",
    "TPOTrainer": "it needs a third, best answer beside each pair",
    "AsyncGRPOTrainer": _SERVER,
}
"""Trainers of TRL 1.16 that cannot be a stage, and why."""

_SPOKEN_FOR: Mapping[str, str] = {
    "output_dir save_* resume_* ignore_data_skip enable_jit_* restore_*": (
        "checkpoints lie in the artifact store, every trl.checkpoint_every steps"
    ),
    "report_to run_name logging_* log_* disable_tqdm project trackio_* num_completions_to_print": (
        "every step is logged; name trackers with --trackers"
    ),
    "push_to_hub* hub_*": "prefloop export makes what can be uploaded",
    "seed data_seed full_determinism": "say --seed",
    "use_cpu bf16* fp16* tf32 cast_lm_head_to_fp32": ("say backbone.precision or backbone.compute"),
    "gradient_checkpointing* activation_*": "say backbone.gradient_checkpointing",
    "max_length truncation_mode": "say backbone.max_length",
    "model_init_kwargs trust_remote_code use_cache use_liger_kernel liger_* torch_compile*": (
        "the model is the backbone, with its own layers"
    ),
    "chat_template_* eos_token pad_token assistant_only_loss completion_only_loss dataset_*"
    " remove_unused_columns label_names skip_memory_metrics is_encoder_decoder padding_value": (
        "the trainer is given token ids that prefloop made (backbone.chat_template)"
    ),
    "disable_dropout": "say backbone.adapter.dropout, which SFTTrainer alone has on",
    "temperature": "say generation.temperature",
    "max_completion_length": "say generation.max_new_tokens",
    "use_vllm vllm_* use_transformers_* transformers_* cache_implementation generation_kwargs"
    " ds3_*": "a TRL stage samples with transformers, from the adapter in training",
    "reward_weights": "say the weights in trl.rewards",
    "precompute_ref_* sync_ref_model ref_model_*": (
        "the reference is the frozen SFT adapter, run in every step"
    ),
    "ddp_* fsdp* deepspeed local_rank parallelism_config accelerator_config average_tokens_*": (
        "a stage trains in one process on one device"
    ),
    "auto_find_batch_size": "a step is of the rows that per_device_train_batch_size says",
    "do_* eval_* *eval per_device_eval_* load_best_* metric_for_best_* greater_is_better"
    " prediction_loss_only include_* batch_eval_* generate_during_eval": (
        "policies are compared after training (evaluate)"
    ),
}
"""Patterns of arguments that prefloop sets itself, and why or where."""


@dataclass(config=STRICT)
class TrlConfig:
    """One of TRL's trainers as the stage that makes the policy: --algo trl:DPOTrainer."""

    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the trainer's own configuration class, such as learning_rate and beta of
    DPOConfig. What is not named has TRL's default; what prefloop sets itself is refused.
    """
    rewards: dict[str, Weight] = aside(default_factory=dict)  # Trl.parts has them: files by bytes
    """Rewards of trainers that sample, and their weights: reward_model, a function of trl.rewards
    such as think_format_reward, path/to/file.py:function or http://host/path as in ppo.rewards. A
    weight of 0 only logs the score. Default: the reward model alone.
    """
    aggregation: Aggregation = "share"
    """Votes to labels, of which TRL takes the side of one half that they lie on."""
    checkpoint_every: Count = aside(default=5)
    """Steps between training checkpoints."""

    def __post_init__(self) -> None:
        # YAML 1.1 reads 1e-4 as a text. One number has one key, however it was written.
        self.args = {
            name: float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
            for name, value in self.args.items()
        }
        for name in self.args:
            if why := spoken_for(name):
                raise ConfigError(f"trl.args.{name} is not for the trainer: {why}")

    @property
    def weights(self) -> Mapping[str, float]:
        """``rewards`` with its default."""
        return self.rewards or {REWARD_MODEL: 1.0}


def spoken_for(argument: str) -> str | None:
    """Why an argument of a trainer is not for a user to set, if it is not."""
    return next(
        (
            why
            for patterns, why in _SPOKEN_FOR.items()
            if any(fnmatchcase(argument, pattern) for pattern in patterns.split())
        ),
        None,
    )


def trainer_named(name: str) -> TrlTrainer:
    """The trainer ``name``. Raises ``ConfigError`` for one that is unknown or makes no policy."""
    if name in REFUSED:
        raise ConfigError(f"algo {PREFIX}{name}: TRL's {name} cannot be a stage: {REFUSED[name]}")
    if name not in TRAINERS:
        raise ConfigError(f"algo: unknown TRL trainer {short(name)} ({among(name, TRAINERS)})")
    return TRAINERS[name]


def slot_of(algo: str) -> str:
    """The slot that an algorithm fills: its own name, and ``trl_dpo`` of ``trl:DPOTrainer``."""
    if not algo.startswith(PREFIX):
        return algo
    return f"trl_{algo.removeprefix(PREFIX).removesuffix('Trainer').lower()}"


def require_method(method: str) -> None:
    """Raise ``ConfigError`` for an adapter method that TRL cannot train."""
    if method not in METHODS:
        raise ConfigError(
            f"backbone.adapter.method {method}: TRL knows PEFT's layers alone, and not what this"
            f" method does in a step: take one of {', '.join(METHODS)}"
        )
