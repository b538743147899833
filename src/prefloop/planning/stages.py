"""What is alive together in each stage of ``pipelines/rlhf.py``, and the highest such moment.

Moments of a stage: *load*, *choose* (the first packed pass, which times attention kernels), *fit*
(an adapter that starts from data), *train* (a pack forward and backward), *score* (a pass without
gradient), *audit* (the checksum of the frozen weights around the first step), *sample* (the engine
beside the trainer). The planner's figure is torch's allocated memory plus what vLLM holds and
CUDA's context; torch may keep more for later while there is room, and gives that back when there is
not.
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
"""Tokens of a prompt for one of a response, hh-rlhf's; only attention's repeated keys depend on
it.
"""
ERROR = 0.10
"""Share that the peak may lie above the estimate where the layers run fused; docs/planner.md has
what was measured.
"""
ERROR_UNFUSED = 0.35
"""The same where the model's own code runs the layers: wide, as 16 methods were measured on one
model and stage alone.
"""
VLLM_WORKSPACE = 2 * GIB
"""As ``rollouts.vllm.WORKSPACE``: vLLM's activations, graphs and sampler."""
ASLEEP = GIB
"""What a sleeping engine keeps, CUDA graphs above all, which stay where they are (vLLM's pull
request 45623): at most what docs/benchmarks.md leaves for it, 10.0 GiB of a device while training
where 8.6 are counted.
"""
RESERVED = 0.9
"""Share of a pass's activations and logits that torch kept beyond them where there was room: 0.25
to 0.86 in docs/benchmarks.md.
"""
VLLM_NF4 = 0.6
"""Bytes that vLLM holds for a 4-bit weight, as ``rollouts.vllm`` counts them."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage's memory in bytes at its highest moment."""

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
        """The estimate with its stated error; CUDA's context and what vLLM is told to take are
        known better.
        """
        return self.peak + round(self.error * self.trainer)

    @property
    def shown(self) -> int:
        """What the device may show in use where there is room: torch keeps freed memory, and gives
        it back when there is none.
        """
        passes = self.parts.get("activations", 0) + self.parts.get("logits", 0)
        return self.peak + round(RESERVED * passes)

    @property
    def trainer(self) -> int:
        """What torch allocates for the trainer."""
        return sum(
            size for part, size in self.parts.items() if part not in ("context", "vLLM", "KV cache")
        )


def tokens_of(count: int, responses: int) -> PackSize:
    """A full pack of ``count`` tokens whose prompts have that many responses each."""
    share = responses / (responses + PROMPT)
    return PackSize(
        count,
        max(1, round(count * share)),
        round(count * (1 + (responses * PROMPT) / (responses + PROMPT))),
    )


class Planner:
    """The stages of a configuration on a card of ``memory`` bytes (None: as much as it takes), or
    on a processor (``cpu``).
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
        """In the order in which they run; rounds repeat them with the same memory."""
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
        whole = {moment: _sum(self.frozen_base, parts) for moment, parts in moments.items()}
        highest = max(whole, key=lambda moment: sum(whole[moment].values()))
        return StagePlan(
            name,
            trained,
            highest,
            whole[highest],
            ERROR_UNFUSED if dropout and self.device.drops else self.error,
        )

    def _roles(self, learning: int, frozen: int) -> int:
        device = self.device
        return (
            device.shared()
            + learning * device.adapter(frozen=False)
            + frozen * device.adapter(frozen=True)
        )

    def _pack(self, group: Group, budget: int | None = None) -> PackSize:
        """The largest pack: the budget (``pack_tokens``), or a group that is longer by itself."""
        return tokens_of(
            max(budget or self.config.backbone.pack_tokens, group.tokens), group.responses
        )

    def _choose(self, static: dict[str, int]) -> dict[str, dict[str, int]]:
        """The moment before the first packed pass of a stage, where there is one."""
        found = self.device.choosing(tokens_of(self.config.backbone.pack_tokens, 2))
        return {"choose": _sum(static, found)} if found else {}

    def _fit(self, static: dict[str, int], group: Group) -> dict[str, dict[str, int]]:
        """The moment in which a fresh adapter reads data, before there is an optimizer."""
        found = self.device.fitting(self._pack(group))
        return (
            {"fit": _sum({k: v for k, v in static.items() if k != "optimizer"}, found)}
            if found
            else {}
        )

    def _scored(self, group: Group) -> PackSize:
        """The largest pack of a pass without gradient (``Backbone.scoring_tokens``)."""
        return self._pack(
            group, self.config.backbone.pack_tokens * (1 if self.device.masked else 2)
        )

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
        # Members that are done stay on the backbone in float32, with their last gradients.
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
        return self._plan(
            "reward", device.role.trained * config.reward.members, moments, dropout=True
        )

    def _group(self, thumbs: bool = False) -> Group:
        """The largest group of pairs, or of ``thumbs``; where the file is not there one pair, each
        response as long as the context.
        """
        config = self.config
        if config.label.source != "file":
            return candidates(config)
        length = config.backbone.max_length
        return (
            (of_file(config, thumbs=True) if thumbs else None)
            or of_file(config)
            or Group(2, 2 * length - 1)
        )

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
        if algo not in WITHOUT_REFERENCE:  # in each step, or (kto, cached) in larger packs
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
    def quantised(self) -> bool:
        return self.device.shape.stored_4bit or self.config.generation.weights == "nf4"

    def _awake(self) -> dict[str, int]:
        """What vLLM keeps while the trainer works: little when it sleeps, as full weights do by
        default.
        """
        generation = self.config.generation
        if self.config.rollout != "vllm":
            return {}
        if generation.sleep and not self.quantised:
            return {"vLLM": ASLEEP}
        return self._engine({"adapters": self._roles(1, 1)})

    def _engine(self, beside: dict[str, int]) -> dict[str, int]:
        """What sampling takes beside the trainer's weights and ``beside``."""
        s, generation, backbone = self.device.shape, self.config.generation, self.config.backbone
        if self.config.rollout == "server":
            return {}
        token = 2 * s.layers * s.kv_heads * s.head_dim * self.device.item
        if self.config.rollout == "transformers":
            rows = generation.max_num_seqs
            # generate() keeps the float32 logits of every step; growing the cache copies one layer
            # of it.
            logits = rows * generation.max_new_tokens * s.vocabulary * 4
            read = self.device.reading(
                rows, max(1, backbone.max_length - generation.max_new_tokens)
            )
            cache = rows * backbone.max_length * token * (s.layers + 1) // s.layers
            return {
                "KV cache": cache,
                "activations": max(read - logits, 0),
                "logits": logits,
            }  # first one, then the other
        weights = self.vllm_weights()
        if generation.kv_cache_gb is not None:
            return {
                "vLLM": weights + VLLM_WORKSPACE,
                "KV cache": round(generation.kv_cache_gb * GIB),
            }
        wanted = (generation.max_num_seqs + 1) * (backbone.max_length + 32) * token
        if self.memory is not None:
            # The engine gives the cache what it finds free: where the trainer takes more than
            # estimated the cache is smaller.
            taken = CONTEXT + (1 + self.error) * (
                sum(self.frozen_base.values()) - CONTEXT + sum(beside.values())
            )
            left = self.memory - taken - weights - VLLM_WORKSPACE
            stays = self.quantised or not generation.sleep
            # Less than a 64th is refused by the engine: then the plan asks for that much and does
            # not fit.
            wanted = min(wanted, max(wanted // 64, int(left * (0.4 if stays else 1))))
        return {"vLLM": weights + VLLM_WORKSPACE, "KV cache": wanted}

    def vllm_weights(self) -> int:
        """vLLM's own copy of the model."""
        s = self.device.shape
        packed = s.linear_weights if self.quantised else 0
        return round(packed * VLLM_NF4) + (s.parameters - packed) * self.device.item + self._slot()

    def _slot(self) -> int:
        """The adapter that vLLM keeps room for on every linear layer, where the policy goes there
        as one.
        """
        handover, backbone = self.config.generation.handover, self.config.backbone
        if handover == "merged" or (handover == "auto" and not self.quantised):
            return 0
        rank = self.config.backbone.adapter.r * card_of(backbone.adapter.method).file_rank
        room = next((r for r in RANKS if r >= rank), rank)
        return (
            room
            * sum(linear.inputs + linear.outputs for linear in self.device.shape.linears)
            * self.device.item
        )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Parts of both, added where they have the same name."""
    return {
        part: one.get(part, 0) + other.get(part, 0)
        for part in [*one, *(p for p in other if p not in one)]
    }
