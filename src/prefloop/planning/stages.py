"""The peak memory of each stage of ``pipelines/rlhf.py``.

A stage has several moments, and the largest counts: *load*, *choose* (the first packed pass, which
times attention kernels), *fit* (initializing an adapter from data), *train* (a pack forward and
backward), *score* (a pass without gradient), *audit* (the checksum of the frozen weights around the
first step), and *sample* (the engine together with the trainer). The estimate is torch's allocated
memory plus vLLM's memory and CUDA's context. torch may reserve more while there is room, and
returns it when there is not.
"""

from __future__ import annotations

import dataclasses

from prefloop.config import RLHFConfig
from prefloop.config.adapters import card_of
from prefloop.config.algorithms import (
    REWARD_ONLY,
    ROLLOUTS,
    SFT_ONLY,
    WITHOUT_REFERENCE,
    reward_model,
)
from prefloop.config.trl import PREFIX
from prefloop.pipeline.algorithms import algorithm
from prefloop.planning.groups import Group, candidates, of_file, sampled
from prefloop.planning.memory import CONTEXT, CUBLAS, GIB, Device, PackSize
from prefloop.planning.processor import on_cpu
from prefloop.planning.shapes import Shape
from prefloop.rollouts.check import RANKS

PROMPT = 1.36
"""Tokens of a prompt per token of a response, as in hh-rlhf. Only attention's repeated keys depend
on it.
"""
ERROR = 0.10
"""The share by which the peak may exceed the estimate with fused layers; measured in
docs/planner.md.
"""
ERROR_UNFUSED = 0.35
"""The same for layers that run the model's own code. It is large, since 16 methods were measured on
only one model and stage.
"""
VLLM_WORKSPACE = 2 * GIB
"""vLLM's activations, graphs and sampler, as in ``rollouts.vllm.WORKSPACE``."""
ASLEEP = GIB
"""Memory of a sleeping engine. Most of it is CUDA graphs, which stay allocated (vLLM's pull request
45623). docs/benchmarks.md measured 10.0 GiB during training where 8.6 are counted.
"""
RESERVED = 0.9
"""Extra memory that torch reserves where there is room, as a share of a pass's activations and
logits: 0.25 to 0.86 in docs/benchmarks.md.
"""
VLLM_NF4 = 0.6
"""vLLM's bytes per 4-bit weight, as counted in ``rollouts.vllm``."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage's memory in bytes at its largest moment, by parts."""

    name: str
    trained: int
    moment: str
    parts: dict[str, int]
    error: float

    @property
    def peak(self) -> int:
        """The estimate."""
        return sum(self.parts.values())

    @property
    def at_most(self) -> int:
        """The estimate plus its error, which applies to the trainer's part only."""
        return self.peak + round(self.error * self.trainer)

    @property
    def shown(self) -> int:
        """The memory that the device may report, with torch's reserve while there is room."""
        passes = self.parts.get("activations", 0) + self.parts.get("logits", 0)
        return self.peak + round(RESERVED * passes)

    @property
    def trainer(self) -> int:
        """The part that torch allocates for the trainer."""
        others = ("context", "vLLM", "KV cache")
        return sum(size for part, size in self.parts.items() if part not in others)


def tokens_of(count: int, responses: int) -> PackSize:
    """A full pack of ``count`` tokens whose prompts have ``responses`` responses each."""
    share = responses / (responses + PROMPT)
    repeated = (responses * PROMPT) / (responses + PROMPT)
    return PackSize(count, max(1, round(count * share)), round(count * (1 + repeated)))


class Planner:
    """Plans the stages of a configuration on a card of ``memory`` bytes, or on a CPU.

    With ``memory`` None the card is as large as necessary.
    """

    def __init__(
        self, config: RLHFConfig, shape: Shape, memory: int | None = None, cpu: bool = False
    ) -> None:
        if config.algo not in (REWARD_ONLY, SFT_ONLY):
            algorithm(config)
        self.config, self.memory = on_cpu(config) if cpu else config, memory
        self.device = Device.of(shape, self.config.backbone)
        self.error = ERROR if self.device.role.fused and not cpu else ERROR_UNFUSED
        self.frozen_base = {"context": CONTEXT, "weights": self.device.weights()}
        if not cpu:
            self.frozen_base["workspace"] = CUBLAS

    def stages(self) -> list[StagePlan]:
        """The stages in the order in which they run. More rounds repeat them with the same
        memory.
        """
        config, from_file = self.config, self.config.label.source == "file"
        out = []
        aligned = config.algo not in (REWARD_ONLY, SFT_ONLY)
        if config.data.demonstrations is not None or not from_file or config.algo != REWARD_ONLY:
            out.append(self._sft())
        if config.algo == SFT_ONLY:
            return out
        awake: dict[str, int] = {}
        if not from_file:
            out.append(self._sampling("sample", {"adapters": self._roles(0, 1)}))
            awake = self._awake()
        scored = reward_model(config) != "none"
        if scored:
            out.append(self._reward(awake))
        if config.algo in ROLLOUTS:
            out.append(self._ppo())
        elif aligned and not config.algo.startswith(PREFIX):
            out.append(self._preference(awake))
        if aligned:
            roles = {"adapters": self._roles(0, 2 + scored * config.reward.members)}
            out.append(self._sampling("evaluate", roles))
        return out

    def _plan(
        self, name: str, trained: int, moments: dict[str, dict[str, int]], dropout: bool = False
    ) -> StagePlan:
        totals = {moment: _sum(self.frozen_base, parts) for moment, parts in moments.items()}
        largest = max(totals, key=lambda moment: sum(totals[moment].values()))
        error = ERROR_UNFUSED if dropout and self.device.drops else self.error
        return StagePlan(name, trained, largest, totals[largest], error)

    def _roles(self, learning: int, frozen: int) -> int:
        adapter = self.device.adapter
        roles = learning * adapter(frozen=False) + frozen * adapter(frozen=True)
        return self.device.shared() + roles

    def _pack(self, group: Group, budget: int | None = None) -> PackSize:
        """The largest pack: the budget (``pack_tokens``), or a single group that is longer."""
        budget = budget or self.config.backbone.pack_tokens
        return tokens_of(max(budget, group.tokens), group.responses)

    def _choose(self, static: dict[str, int]) -> dict[str, dict[str, int]]:
        """The moment of choosing a kernel, if this device has several."""
        parts = self.device.choosing(tokens_of(self.config.backbone.pack_tokens, 2))
        return {"choose": _sum(static, parts)} if parts else {}

    def _fit(self, static: dict[str, int], group: Group) -> dict[str, dict[str, int]]:
        """The moment of initializing an adapter from data, before an optimizer exists."""
        parts = self.device.fitting(self._pack(group))
        without_optimizer = {k: v for k, v in static.items() if k != "optimizer"}
        return {"fit": _sum(without_optimizer, parts)} if parts else {}

    def _scored(self, group: Group) -> PackSize:
        """The largest pack of a pass without gradient (``Backbone.scoring_tokens``)."""
        packs = 1 if self.device.masked else 2
        return self._pack(group, packs * self.config.backbone.pack_tokens)

    def _sft(self) -> StagePlan:
        config, device = self.config, self.device
        document = Group(1, config.backbone.max_length)
        static = {
            "adapters": self._roles(1, 0),
            "optimizer": device.optimizer(config.sft.optim.name),
        }
        moments = {
            "load": {"weights": device.loading() - device.weights()},
            "train": static | device.training(self._pack(document), "sft"),
            "audit": static | {"audit": device.digest()},
        }
        moments |= self._choose(static) | self._fit(static, document)
        if config.sft.eval_share:
            moments["score"] = static | device.scoring(self._scored(document))
        return self._plan("sft", device.role.trained, moments, dropout=True)

    def _reward(self, awake: dict[str, int]) -> StagePlan:
        device, config = self.device, self.config
        group = self._group()
        # Finished members stay on the backbone in float32, with their last gradients.
        done = (config.reward.members - 1) * (
            device.adapter(frozen=False) + 4 * sum(device.role.tensors.learn)
        )
        static = {
            "adapters": self._roles(1, 0) + done,
            "optimizer": device.optimizer(config.reward.optim.name),
        }
        static = _sum(static, awake)
        moments = {
            "train": static | device.training(self._pack(group), "score"),
            "score": static | device.scoring(self._scored(group), "score"),
            "audit": static | {"audit": device.digest()},
            **self._choose(static),
            **self._fit(static, group),
        }
        trained = device.role.trained * config.reward.members
        return self._plan("reward", trained, moments, dropout=True)

    def _group(self, thumbs: bool = False) -> Group:
        """The largest group of pairs or ``thumbs``.

        Without a file it is one pair whose responses are as long as the context.
        """
        config = self.config
        if config.label.source != "file":
            return candidates(config)
        group = of_file(config, thumbs=True) if thumbs else None
        return group or of_file(config) or Group(2, 2 * config.backbone.max_length - 1)

    def _preference(self, awake: dict[str, int]) -> StagePlan:
        device, config, algo = self.device, self.config, self.config.algo
        group = self._group(thumbs=algo == "kto")
        pack = self._pack(group)
        static = {
            "adapters": self._roles(1, 1),
            "optimizer": device.optimizer(config.preference.optim.name),
        }
        static = _sum(static, awake)
        moments = {
            "train": static | device.training(pack),
            "audit": static | {"audit": device.digest()},
        }
        moments |= self._choose(static)
        # A live reference scores in each step. KTO's and a cached one score in larger packs.
        if algo not in WITHOUT_REFERENCE:
            live = config.preference.reference == "live" and algo != "kto"
            moments["score"] = static | device.scoring(pack if live else self._scored(group))
        return self._plan(algo, device.role.trained, moments)

    def _ppo(self) -> StagePlan:
        device, config = self.device, self.config
        group = sampled(config, config.ppo.samples_per_prompt)
        own = 1 if config.algo == "ppo" and config.ppo.critic == "adapter" else 0
        members = config.reward.members if config.ppo.reward_model_weight else 0
        roles = {"adapters": self._roles(1 + own, 1 + members)}
        static = _sum(roles, {"optimizer": device.optimizer(config.ppo.optim.name) * (1 + own)})
        awake = self._awake()
        head = "entropy" if config.ppo.entropy_coef else "logps"
        moments = {
            "train": _sum(static | device.training(self._pack(group), head), awake),
            "score": _sum(static | device.scoring(self._scored(group)), awake),
            "audit": _sum(static | {"audit": device.digest()}, awake),
            "sample": _sum(static, self._engine(static)),
            **self._choose(_sum(static, awake)),
        }
        return self._plan(config.algo, device.role.trained * (1 + own), moments)

    def _sampling(self, name: str, static: dict[str, int]) -> StagePlan:
        moments = {"sample": _sum(static, self._engine(static))}
        if name == "evaluate":
            pack = self._scored(sampled(self.config, self.config.evaluate.samples))
            moments["score"] = _sum(_sum(static, self.device.scoring(pack)), self._awake())
        return self._plan(name, 0, moments)

    # The engine that samples.

    @property
    def quantized(self) -> bool:
        return self.device.shape.stored_4bit or self.config.generation.weights == "nf4"

    def _awake(self) -> dict[str, int]:
        """vLLM's memory while the trainer works. It is small if the engine sleeps, which is the
        default with full weights.
        """
        generation = self.config.generation
        if self.config.rollout != "vllm":
            return {}
        if generation.sleep and not self.quantized:
            return {"vLLM": ASLEEP}
        return self._engine({"adapters": self._roles(1, 1)})

    def _engine(self, trainer: dict[str, int]) -> dict[str, int]:
        """The engine's memory while the weights and ``trainer`` are on the device."""
        s, generation, backbone = self.device.shape, self.config.generation, self.config.backbone
        if self.config.rollout == "server":
            return {}
        token = 2 * s.layers * s.kv_heads * s.head_dim * self.device.item
        if self.config.rollout == "transformers":
            rows = generation.max_num_seqs
            # generate() keeps the float32 logits of every step. Growing the cache copies one layer.
            logits = rows * generation.max_new_tokens * s.vocabulary * 4
            prompt = max(1, backbone.max_length - generation.max_new_tokens)
            read = self.device.reading(rows, prompt)
            cache = rows * backbone.max_length * token * (s.layers + 1) // s.layers
            # Reading the prompts ends before the logits are kept: the larger of the two counts.
            return {"KV cache": cache, "activations": max(read - logits, 0), "logits": logits}
        weights = self.vllm_weights()
        held = weights + VLLM_WORKSPACE
        if generation.kv_cache_gb is not None:
            return {"vLLM": held, "KV cache": round(generation.kv_cache_gb * GIB)}
        wanted = (generation.max_num_seqs + 1) * (backbone.max_length + 32) * token
        if self.memory is not None:
            # The engine uses the free memory for its cache, so the cache is smaller if the trainer
            # takes more than estimated.
            ours = sum(self.frozen_base.values()) - CONTEXT + sum(trainer.values())
            left = self.memory - (CONTEXT + (1 + self.error) * ours) - held
            stays = self.quantized or not generation.sleep
            # The engine refuses a cache below a 64th of the wanted one. The plan then asks for that
            # much and does not fit.
            wanted = min(wanted, max(wanted // 64, int(left * (0.4 if stays else 1))))
        return {"vLLM": held, "KV cache": wanted}

    def vllm_weights(self) -> int:
        """vLLM's own copy of the model."""
        s = self.device.shape
        packed = s.linear_weights if self.quantized else 0
        return round(packed * VLLM_NF4) + (s.parameters - packed) * self.device.item + self._slot()

    def _slot(self) -> int:
        """vLLM's buffers for an adapter on every linear layer, if it runs the policy as an
        adapter.
        """
        handover, backbone = self.config.generation.handover, self.config.backbone
        if handover == "merged" or (handover == "auto" and not self.quantized):
            return 0
        rank = backbone.adapter.r * card_of(backbone.adapter.method).file_rank
        reserved = next((r for r in RANKS if r >= rank), rank)
        sides = sum(linear.inputs + linear.outputs for linear in self.device.shape.linears)
        return reserved * sides * self.device.item


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The parts of both; those of one name are added."""
    return {part: one.get(part, 0) + other.get(part, 0) for part in {**one, **other}}
