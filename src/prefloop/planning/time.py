"""Estimated seconds and bytes on disk of each stage, from tokens, arithmetic and measured
constants.

A pass takes the larger of two times: its arithmetic at a share of the card's matrix rate
(``DeviceRates.share``), and the host's time to launch it, which decides for small models. A sampled
token takes ``STEP`` plus the time to read weights and cache. The constants come from the runs of
docs/benchmarks.md, and docs/planner.md has the estimates' errors. Cards without a measurement have
their makers' figures, which may be wrong by a factor of 2; for an unlisted card the factor is 3.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from typing import Any, Literal

from prefloop.config import RLHFConfig
from prefloop.config.algorithms import (
    REWARD_ONLY,
    ROLLOUTS,
    SFT_ONLY,
    WITHOUT_REFERENCE,
    reward_model,
)
from prefloop.data.files import count_rows
from prefloop.data.readable import prompt_parts
from prefloop.data.source import Source
from prefloop.errors import PrefloopError
from prefloop.planning.memory import Device
from prefloop.records import Comparison, Demonstration, Rating

SHARE = 0.66
"""The reached share of the matrix rate, where recomputation counts as work ("One PPO step on a
GPU": scoring 5.08 of 7.57 s, training 3.45 x 1.5 of 7.80 s).
"""
LAUNCH, LAUNCH_TRAIN = 2.2e-3, 7.2e-3
"""The host's seconds per layer for a pass without gradient, and for one with gradient and its share
of the optimizer's step. hh_ppo's reward ensemble took 115 s for 3 x 178 steps of 30 layers, and its
SFT and PPO agree.
"""
STEP, READ = 8.7e-3, 0.8
"""vLLM's seconds per token of a batch, and its reached share of the memory rate. Measured: 15.4 ms
on an H100 and 14.2 on an H200 for 15.2 GB of weights and 3.8 GB of cache, 7.5 to 14 ms for SmolLM2.
"""
DEQUANTIZE = 2.8e-12
"""Additional seconds per token for each 4-bit weight of vLLM (6,989 tokens/s from 256 rows at 7B,
450 from 64 at 70B).
"""
FILLED = 0.7
"""Mean length of responses as a share of max_new_tokens: 0.68 in the demo, 0.5 in hh_ppo."""
SLOWER = {
    "dora": 2.7,
    "adalora": 2.9,
    "vera": 1.4,
    "ia3": 0.7,
    "oft": 2.5,
    "boft": 10.0,
    "hra": 2.0,
    "miss": 1.3,
    "randlora": 2.4,
    "prompt": 0.9,
    "p-tuning": 1.1,
    "prefix": 0.6,
    "p-tuning-v2": 0.6,
    "bitfit": 0.7,
    "bottleneck": 0.9,
    "delta-lora": 2.0,
    "mole": 2.2,
    "full": 1.0,
}
"""Method → seconds of a step relative to fused LoRA, on a small model that waits for its host
(docs/adapters.md).
"""
UNFUSED = 1.3
"""The same for layers without our fused code. It is that of MiSS, whose arithmetic is close to
LoRA's, in PEFT's layers.
"""
OVERHEAD = 30.0
"""Seconds to load a model and to start vLLM (21 to 30 s measured)."""
CHARACTERS, TEMPLATE = 4.0, 12
"""About how many characters of English make a token, and how many tokens a chat template adds."""
SAMPLE = 200
"""How many rows are measured."""


@dataclasses.dataclass(frozen=True)
class DeviceRates:
    """A class of device: bfloat16 matrix rate in FLOP/s and memory rate in bytes/s."""

    flops: float
    bandwidth: float
    source: str
    share: float = SHARE
    sampling: float = SHARE
    """The share of the matrix rate that vLLM reaches when arithmetic limits it."""
    launches: bool = True
    """Whether a host launches the work, so that a small model may wait for it."""


CARDS = {
    "H200": DeviceRates(793e12, 4.8e12, "rates measured on an H200"),
    "H100": DeviceRates(796e12, 3.35e12, "rates measured on an H100"),
    "A100": DeviceRates(312e12, 2.0e12, "an A100 by its maker's figures"),
    "L4": DeviceRates(121e12, 0.3e12, "an L4 by its maker's figures"),
    "4090": DeviceRates(165e12, 1.0e12, "a 4090 by its maker's figures"),
    "3090": DeviceRates(71e12, 0.94e12, "a 3090 by its maker's figures"),
    "T4": DeviceRates(65e12, 0.32e12, "a T4 by its maker's figures"),
    "CPU": DeviceRates(
        306e9, 5e10, "two CPU cores, measured", share=0.5, sampling=0.33, launches=False
    ),
}
UNKNOWN = DeviceRates(
    150e12,
    0.9e12,
    "a guess of 150 TFLOP/s and 0.9 TB/s, between an L4 and an A100; --card takes"
    f" {', '.join(CARDS)}",
)


def card_named(name: str | None) -> DeviceRates:
    """The rates of a device by torch's name or ours, in upper or lower case."""
    return next((card for key, card in CARDS.items() if name and key in name.upper()), UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Data:
    """The number of a file's records, and the mean tokens of a prompt with its template and of one
    response, estimated from characters.
    """

    rows: float
    prompt: float
    response: float = 0.0


def measure(
    path: Source | None,
    kind: Literal["prompts", "demonstrations", "comparisons", "ratings"],
    limit: int | None = None,
) -> Data | None:
    """Count a file's rows and measure its first ``SAMPLE`` records.

    Returns ``None`` for a file that cannot be read; the stage that reads it raises the error.
    """
    from prefloop.data import sources

    if path is None or not (rows := count_rows(path)):
        return None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            load = getattr(sources, f"load_{kind}")
            read = load(path, bad_rows="quarantine", quarantine_dir=scratch, limit=SAMPLE)
            records: list[Any] = read.records
    except PrefloopError:
        return None
    prompt = sum(len(part.text) for record in records for part in prompt_parts(record.prompt))
    texts = [_text(record) for record in records]
    response = sum(map(len, texts)) / (2 if kind == "comparisons" else 1)
    mean = 1 / (CHARACTERS * max(1, len(records)))
    return Data(min(rows, limit or rows), TEMPLATE + prompt * mean, response * mean)


def _text(record: Any) -> str:
    """The text of all answers of a record."""
    if isinstance(record, Comparison):
        return record.responses[0].text + record.responses[1].text
    if isinstance(record, Rating):
        return record.response.text
    return record.response if isinstance(record, Demonstration) else ""


def measure_votes(path: Source | None, limit: int | None = None) -> Data | None:
    """``measure`` for a file of votes, in pairs. Two thumbs count as a pair, as in KTO's steps."""
    from prefloop.data.sources import holds

    try:
        thumbs = path is not None and holds(Rating, path)
    except PrefloopError:
        return None
    if not thumbs:
        return measure(path, "comparisons", limit)
    data = measure(path, "ratings", limit)
    return None if data is None else dataclasses.replace(data, rows=data.rows / 2)


class Clock:
    """The seconds of each stage of a configuration on a card; ``None`` for a stage without data."""

    def __init__(self, config: RLHFConfig, device: Device, card: DeviceRates) -> None:
        self.config, self.device, self.shape, self.card = config, device, device.shape, card
        data = config.data
        self.demonstrations = measure(data.demonstrations, "demonstrations", data.limit)
        self.comparisons = measure_votes(data.comparisons, data.limit)
        self.prompts = measure(data.prompts, "prompts", data.limit)
        self.evaluated = measure(data.eval_prompts, "prompts", data.eval_limit)

    def seconds(self, stage: str) -> float | None:
        """The seconds of a stage of ``Planner.stages``, without ``OVERHEAD``."""
        if stage == SFT_ONLY:
            return self._sft()
        if stage == "sample":
            data, candidates = self.prompts, self.config.sample.candidates
            return None if data is None else self._sample(data.rows * candidates)
        if stage == "evaluate":
            return self._evaluate()
        if stage in ROLLOUTS:
            return self._rollouts()
        return self._pairs(stage)

    def steps(self, stage: str) -> int | None:
        """The optimizer steps of a stage, per member of a reward ensemble.

        ``None`` for a stage that does not train or has no data.
        """
        config = self.config
        if stage == SFT_ONLY and self.demonstrations is not None:
            rows = self.demonstrations.rows * (1 - config.sft.eval_share) * config.sft.epochs
            return math.ceil(rows / config.sft.batch_size)
        if stage in ROLLOUTS:
            return config.ppo.steps * config.ppo.epochs * config.ppo.minibatches
        if stage in (SFT_ONLY, "sample", "evaluate") or (pairs := self._labeled()) is None:
            return None
        if stage == REWARD_ONLY:
            trained = (1 - config.reward.holdout) * config.reward.epochs * pairs
            return math.ceil(trained / config.reward.batch_pairs)
        return math.ceil(config.preference.epochs * pairs / config.preference.batch_pairs)

    def _labeled(self) -> float | None:
        """The number of pairs with votes."""
        data = self.comparisons if self.config.label.source == "file" else self.prompts
        per_prompt = 1 if self.config.label.source == "file" else self.config.label.pairs_per_prompt
        return None if data is None else data.rows * per_prompt

    @property
    def _new(self) -> float:
        return FILLED * self.config.generation.max_new_tokens

    def _sft(self) -> float | None:
        data, config = self.demonstrations, self.config.sft
        if data is None:
            return None
        rows = data.rows * (1 - config.eval_share) * config.epochs
        tokens = rows * (data.prompt + data.response)
        return self._train(tokens, self._packs(tokens, rows / config.batch_size))

    def _evaluate(self) -> float | None:
        """Seconds of the evaluation: responses of SFT, of SFT again, of the policy and of the bare
        model, their scores, and the KL of the last two.
        """
        data, samples = self.evaluated, self.config.evaluate.samples
        if data is None:
            return None
        tokens = data.rows * (data.prompt + samples * self._new)
        bare = int(self.config.evaluate.base)
        return (3 + bare) * self._sample(data.rows * samples) + (4 + 2 * bare) * self._score(tokens)

    def _pairs(self, stage: str) -> float | None:
        """Seconds of reward or preference training, on a file's pairs or on sampled candidates."""
        config = self.config
        from_file = config.label.source == "file"
        data = self.comparisons if from_file else self.prompts
        if data is None:
            return None
        groups, pairs = data.rows, self._labeled() or 0.0
        responses = 2 * data.response if from_file else config.sample.candidates * self._new
        tokens = data.prompt + responses
        if stage == REWARD_ONLY:
            share = (1 - config.reward.holdout) * config.reward.epochs * config.reward.members
            tokens *= share * groups
            packs = self._packs(tokens, share * pairs / config.reward.batch_pairs)
            return self._train(tokens, packs)
        epochs = config.preference.epochs
        tokens *= groups * epochs
        packs = self._packs(tokens, epochs * pairs / config.preference.batch_pairs)
        cost = self._train(tokens, packs)
        scored = 0 if stage in WITHOUT_REFERENCE else 3 if stage == "kto" else 1
        return cost + scored * self._score(tokens)

    def _rollouts(self) -> float:
        ppo, prompt = self.config.ppo, self.prompts.prompt if self.prompts else 130
        responses = ppo.prompts_per_step * ppo.samples_per_prompt
        tokens = ppo.prompts_per_step * prompt + responses * self._new
        own = 1 if self.config.algo == "ppo" and ppo.critic == "adapter" else 0
        members = self.config.reward.members if ppo.reward_model_weight else 0
        sampled = self._sample(responses) + (2 + members + own) * self._score(tokens)
        epoch = (1 + own) * self._train(tokens, self._packs(tokens, ppo.minibatches))
        return ppo.steps * (sampled + ppo.epochs * epoch)

    def _packs(self, tokens: float, steps: float) -> float:
        """How many passes ``tokens`` take in ``steps`` optimizer steps."""
        return steps * max(1, math.ceil(tokens / max(1, steps) / self.config.backbone.pack_tokens))

    def _slower(self) -> float:
        role = self.device.role
        return 1.0 if role.fused else SLOWER.get(role.method, UNFUSED)

    def _arithmetic(self, tokens: float) -> float:
        work = max(1.0, self._slower()) * 2 * self.shape.parameters * tokens
        return work / (self.card.flops * self.card.share)

    def _launched(self, passes: float, each: float) -> float:
        return self._slower() * passes * self.shape.layers * each if self.card.launches else 0.0

    def _score(self, tokens: float) -> float:
        passes = math.ceil(tokens / (2 * self.config.backbone.pack_tokens))
        return max(self._arithmetic(tokens), self._launched(passes, LAUNCH))

    def _train(self, tokens: float, passes: float) -> float:
        """Seconds of training: forward, gradients of activations (and of learning weights), and the
        second forward if blocks are recomputed.
        """
        parts = 2 + self.device.recomputes + (self.device.role.method == "full")
        again = LAUNCH if self.device.recomputes else 0
        return max(parts * self._arithmetic(tokens), self._launched(passes, LAUNCH_TRAIN + again))

    def _sample(self, responses: float) -> float:
        """Seconds of sampling ``responses`` responses."""
        s, config = self.shape, self.config.generation
        new, vllm = config.max_new_tokens, self.config.rollout != "transformers"
        rows = min(config.max_num_seqs, max(1.0, responses))
        cache = rows * 2 * s.layers * s.kv_heads * s.head_dim * 2 * (130 + new / 2)
        packed = s.linear_weights if config.weights == "nf4" else 0
        read = 2 * s.parameters - 1.4 * packed + cache
        each = read / (self.card.bandwidth * READ) + DEQUANTIZE * packed
        each += (STEP if vllm else s.layers * LAUNCH) if self.card.launches else 0
        work = responses * self._new * 2 * s.parameters
        return max(responses / rows * new * each, work / (self.card.flops * self.card.sampling))


def disk(config: RLHFConfig, device: Device) -> int:
    """Bytes in the store at the end of a run: all adapters, and one stage's checkpoints.

    A checkpoint has the learning parameters and their moments, and stays until its stage ends.
    """
    role = device.role
    learning = 4 * sum(role.tensors.learn)
    adapter = learning + 4 * role.tensors.still
    members = config.reward.members if reward_model(config) != "none" else 0
    of_round = {SFT_ONLY: 0, REWARD_ONLY: members}.get(config.algo, members + 1)
    adapters = (1 + config.rounds * of_round) * adapter
    moments = role.moments(config.sft.optim.name.removeprefix("paged_"))
    return adapters + 2 * (learning + moments)  # SFT keeps two checkpoints, the others one
