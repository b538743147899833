"""Seconds and bytes on disk of each stage, from tokens, arithmetic and what was measured.

A pass takes as long as its arithmetic at the card's matrix rate times ``Card.share``, or as the
host needs to launch it: small models wait for the host. A sampled token takes ``STEP`` and the
reading of weights and cache. The constants are those of docs/benchmarks.md's runs; what the
estimates were off by is in docs/planner.md. Cards that nobody measured stand with their makers'
figures: a factor of 2 either way, 3 on a card that is not listed.
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
"""Of the matrix rate, recomputation counted as work ("One PPO step on a GPU": scoring 5.08 of 7.57
s, training 3.45 x 1.5 of 7.80 s).
"""
LAUNCH, LAUNCH_TRAIN = 2.2e-3, 7.2e-3
"""Seconds a layer that the host needs for a pass, and for one with gradient and its share of the
optimizer's step: 115 s of hh_ppo's reward ensemble are 3 x 178 steps of 30 layers; its SFT and PPO
agree.
"""
STEP, READ = 8.7e-3, 0.8
"""Seconds of vLLM for a token of a batch, and the share of the memory's rate at which it reads:
15.4 ms on an H100 and 14.2 on an H200 for 15.2 GB of weights and 3.8 GB of cache, 7.5 to 14 ms for
SmolLM2.
"""
DEQUANTISE = 2.8e-12
"""Seconds more for each weight that vLLM holds in 4 bits (6,989 tokens/s from 256 rows at 7B, 450
from 64 at 70B).
"""
FILLED = 0.7
"""Share of max_new_tokens that responses have on average: 0.68 in the demo, 0.5 in hh_ppo."""
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
"""Seconds of a step over those of LoRA where layers do not run fused, on a small model that waits
for its host (docs/adapters.md).
"""
UNFUSED = 1.3
"""The same for layers that run another code than ours: what MiSS, whose arithmetic is about LoRA's,
takes in PEFT's.
"""
OVERHEAD = 30.0
"""Seconds to load a model and to start vLLM (21 to 30 s measured)."""
CHARACTERS, TEMPLATE = 4.0, 12
"""Of English text in a token, and tokens that a chat template adds to a document; about."""
SAMPLE = 200
"""Rows whose length is looked at."""


@dataclasses.dataclass(frozen=True)
class DeviceRates:
    """A class of device: bfloat16 matrix rate in FLOP/s and memory rate in bytes/s."""

    flops: float
    bandwidth: float
    source: str
    share: float = SHARE
    sampling: float = SHARE
    """Share of the matrix rate that vLLM reaches where the arithmetic decides."""
    launches: bool = True
    """Whether a host hands out work, and can be what a small model waits for."""


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
    """The class of a device by torch's name of it, or by ours in any case."""
    return next((card for key, card in CARDS.items() if name and key in name.upper()), UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Data:
    """Records of a file, and mean tokens of a prompt with its template and of one response, guessed
    from characters.
    """

    rows: float
    prompt: float
    response: float = 0.0


def measure(
    path: Source | None,
    kind: Literal["prompts", "demonstrations", "comparisons", "ratings"],
    limit: int | None = None,
) -> Data | None:
    """Count a file's rows and look at the first ``SAMPLE`` records; None where there is none to
    read: the stage that reads it says why.
    """
    from prefloop.data import sources

    if path is None or not (rows := count_rows(path)):
        return None
    try:
        with tempfile.TemporaryDirectory() as aside:
            load = getattr(sources, f"load_{kind}")
            records: list[Any] = load(
                path, bad_rows="quarantine", quarantine_dir=aside, limit=SAMPLE
            ).records
    except PrefloopError:
        return None
    prompt = sum(len(part.text) for record in records for part in prompt_parts(record.prompt))
    texts = [_text(record) for record in records]
    response = sum(map(len, texts)) / (2 if kind == "comparisons" else 1)
    mean = 1 / (CHARACTERS * max(1, len(records)))
    return Data(min(rows, limit or rows), TEMPLATE + prompt * mean, response * mean)


def _text(record: Any) -> str:
    """The answers of a record, one after the other."""
    if isinstance(record, Comparison):
        return record.responses[0].text + record.responses[1].text
    if isinstance(record, Rating):
        return record.response.text
    return record.response if isinstance(record, Demonstration) else ""


def measure_votes(path: Source | None, limit: int | None = None) -> Data | None:
    """The pairs of a file; of a file of thumbs half as many as there are thumbs, since KTO's steps
    hold two for a pair.
    """
    from prefloop.data.sources import holds

    try:
        thumbs = path is not None and holds(Rating, path)
    except PrefloopError:
        return None
    if not thumbs:
        return measure(path, "comparisons", limit)
    found = measure(path, "ratings", limit)
    return None if found is None else dataclasses.replace(found, rows=found.rows / 2)


class Clock:
    """Seconds of each stage of a configuration on a card; a stage whose data is not there has
    none.
    """

    def __init__(self, config: RLHFConfig, device: Device, card: DeviceRates) -> None:
        self.config, self.device, self.shape, self.card = config, device, device.shape, card
        data = config.data
        self.demonstrations = measure(data.demonstrations, "demonstrations", data.limit)
        self.comparisons = measure_votes(data.comparisons, data.limit)
        self.prompts = measure(data.prompts, "prompts", data.limit)
        self.evaluated = measure(data.eval_prompts, "prompts", data.eval_limit)

    def seconds(self, stage: str) -> float | None:
        """Of the stage as ``Planner.stages`` names it, without the starts of model and engine
        (``OVERHEAD``).
        """
        if stage == SFT_ONLY:
            return self._sft()
        if stage == "sample":
            return (
                None
                if self.prompts is None
                else self._sample(self.prompts.rows * self.config.sample.candidates)
            )
        if stage == "evaluate":
            return self._evaluate()
        if stage in ROLLOUTS:
            return self._rollouts()
        return self._pairs(stage)

    def steps(self, stage: str) -> int | None:
        """Optimizer steps of a stage, of one member where several are trained; None where it trains
        nothing or its data is not there.
        """
        config = self.config
        if stage == SFT_ONLY and self.demonstrations is not None:
            rows = self.demonstrations.rows * (1 - config.sft.eval_share) * config.sft.epochs
            return math.ceil(rows / config.sft.batch_size)
        if stage in ROLLOUTS:
            return config.ppo.steps * config.ppo.epochs * config.ppo.minibatches
        if stage in (SFT_ONLY, "sample", "evaluate") or (pairs := self._labelled()) is None:
            return None
        if stage == REWARD_ONLY:
            return math.ceil(
                (1 - config.reward.holdout)
                * config.reward.epochs
                * pairs
                / config.reward.batch_pairs
            )
        return math.ceil(config.preference.epochs * pairs / config.preference.batch_pairs)

    def _labelled(self) -> float | None:
        """Pairs that votes are about."""
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
        """Responses of SFT, of SFT again, of the policy and of the bare model, their scores, and
        the KL of the last two.
        """
        data, samples = self.evaluated, self.config.evaluate.samples
        if data is None:
            return None
        tokens = data.rows * (data.prompt + samples * self._new)
        bare = int(self.config.evaluate.base)
        return (3 + bare) * self._sample(data.rows * samples) + (4 + 2 * bare) * self._score(tokens)

    def _pairs(self, stage: str) -> float | None:
        """Reward or preference training on the pairs of a file or of sampled candidates."""
        config = self.config
        from_file = config.label.source == "file"
        data = self.comparisons if from_file else self.prompts
        if data is None:
            return None
        groups, pairs = data.rows, self._labelled() or 0.0
        tokens = data.prompt + (
            2 * data.response if from_file else config.sample.candidates * self._new
        )
        if stage == REWARD_ONLY:
            share = (1 - config.reward.holdout) * config.reward.epochs * config.reward.members
            return self._train(
                share * groups * tokens,
                self._packs(share * groups * tokens, share * pairs / config.reward.batch_pairs),
            )
        epochs = config.preference.epochs
        tokens *= groups * epochs
        cost = self._train(
            tokens, self._packs(tokens, epochs * pairs / config.preference.batch_pairs)
        )
        scored = 0 if stage in WITHOUT_REFERENCE else 3 if stage == "kto" else 1
        return cost + scored * self._score(tokens)

    def _rollouts(self) -> float:
        ppo, prompt = self.config.ppo, self.prompts.prompt if self.prompts else 130
        responses = ppo.prompts_per_step * ppo.samples_per_prompt
        tokens = ppo.prompts_per_step * prompt + responses * self._new
        own = 1 if self.config.algo == "ppo" and ppo.critic == "adapter" else 0
        members = self.config.reward.members if ppo.reward_model_weight else 0
        step = self._sample(responses) + (2 + members + own) * self._score(tokens)
        return ppo.steps * (
            step
            + ppo.epochs * (1 + own) * self._train(tokens, self._packs(tokens, ppo.minibatches))
        )

    def _packs(self, tokens: float, steps: float) -> float:
        """Passes that ``tokens`` take in that many optimizer steps."""
        return steps * max(1, math.ceil(tokens / max(1, steps) / self.config.backbone.pack_tokens))

    def _slower(self) -> float:
        role = self.device.role
        return 1.0 if role.fused else SLOWER.get(role.method, UNFUSED)

    def _arithmetic(self, tokens: float) -> float:
        return (
            max(1.0, self._slower())
            * 2
            * self.shape.parameters
            * tokens
            / (self.card.flops * self.card.share)
        )

    def _launched(self, passes: float, each: float) -> float:
        return self._slower() * passes * self.shape.layers * each if self.card.launches else 0.0

    def _score(self, tokens: float) -> float:
        passes = math.ceil(tokens / (2 * self.config.backbone.pack_tokens))
        return max(self._arithmetic(tokens), self._launched(passes, LAUNCH))

    def _train(self, tokens: float, passes: float) -> float:
        """Forward, gradient of activations (and of weights that learn), and the forward again where
        blocks are recomputed.
        """
        parts = 2 + self.device.recomputes + (self.device.role.method == "full")
        again = LAUNCH if self.device.recomputes else 0
        return max(parts * self._arithmetic(tokens), self._launched(passes, LAUNCH_TRAIN + again))

    def _sample(self, responses: float) -> float:
        """Seconds to sample that many responses."""
        s, config = self.shape, self.config.generation
        new, vllm = config.max_new_tokens, self.config.rollout != "transformers"
        rows = min(config.max_num_seqs, max(1.0, responses))
        cache = rows * 2 * s.layers * s.kv_heads * s.head_dim * 2 * (130 + new / 2)
        held = s.linear_weights if config.weights == "nf4" else 0
        each = (2 * s.parameters - 1.4 * held + cache) / (
            self.card.bandwidth * READ
        ) + DEQUANTISE * held
        each += (STEP if vllm else s.layers * LAUNCH) if self.card.launches else 0
        arithmetic = (
            responses * self._new * 2 * s.parameters / (self.card.flops * self.card.sampling)
        )
        return max(responses / rows * new * each, arithmetic)


def disk(config: RLHFConfig, device: Device) -> int:
    """Bytes in the store when all is done: adapters, and the checkpoints that stay until their
    stage ends (what learns, and its moments).
    """
    role = device.role
    learning = 4 * sum(role.tensors.learn)
    adapter = learning + 4 * role.tensors.still
    members = config.reward.members if reward_model(config) != "none" else 0
    of_round = {SFT_ONLY: 0, REWARD_ONLY: members}.get(config.algo, members + 1)
    adapters = (1 + config.rounds * of_round) * adapter
    return adapters + 2 * (
        learning + role.moments(config.sft.optim.name.removeprefix("paged_"))
    )  # SFT keeps two, the others one
