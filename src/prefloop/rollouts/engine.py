"""The protocol of everything that samples responses, and the engine that uses transformers.

Engines take token ids and return token ids, so the trainer scores exactly the tokens that were
sampled. ``load_policy`` hands the current adapter over, and every later response comes from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from transformers import GenerationConfig as NeutralDefaults
from transformers.generation.streamers import BaseStreamer

from prefloop.base.console import say
from prefloop.config import GenerationConfig
from prefloop.errors import EngineError
from prefloop.models.backbone import Backbone

T = TypeVar("T")
SAVED = "Every checkpoint is kept: the same command goes on from the last one"


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled response."""

    prompt: int
    """Index into the prompts of the call."""
    token_ids: list[int]
    logps: list[float]
    """The sampler's log-prob of each token, in nats."""
    finished: bool
    """Whether the response ends in the stop token."""


class RolloutEngine(Protocol):
    """Samples responses from the policy it was last given."""

    name: str

    def load_policy(self, role: str | None) -> None:
        """Take over an adapter of the backbone (``None``: the bare base) as the policy to sample
        from.
        """
        ...

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        n: int,
        seed: int,
        advance: Callable[..., None] | None = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        """``n`` responses to each prompt, grouped by prompt; the same seed and policy give the same
        responses.

        Args:
            prompts_ids: token ids of each prompt.
            advance: called with the number of new responses.
            temperature: the run's by default. At 0 every token is the likeliest one, and log-probs
                are those at temperature 1 (``divisor``).
        """
        ...

    def pause(self) -> None:
        """Free memory until the next ``load_policy``."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


def divisor(temperature: float) -> float:
    """What logits are divided by for the log-probs of a response sampled at ``temperature``: 1 for
    a greedy one.
    """
    return temperature or 1.0


class Restarting:
    """An engine that is restarted once, with its policy, when it dies. A fault of CUDA itself ends
    the trainer's process too.
    """

    def __init__(self, make: Callable[[], RolloutEngine]) -> None:
        self.make = make
        self.engine = make()
        self.name = self.engine.name
        self.role: str | None = None
        self.restarts = 1

    def load_policy(self, role: str | None) -> None:
        self.role = role
        self._survive(lambda: self.engine.load_policy(role))

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        n: int,
        seed: int,
        advance: Callable[..., None] | None = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        reported = done = 0

        def count(amount: int) -> None:  # a second attempt repeats responses that were reported
            nonlocal reported, done
            done += amount
            if advance and done > reported:
                advance(done - reported)
                reported = done

        def attempt() -> list[Rollout]:
            nonlocal done
            done = 0
            return self.engine.generate(prompts_ids, n, seed, count, temperature)

        return self._survive(attempt)

    def _survive(self, action: Callable[[], T]) -> T:
        """Run ``action``; after an ``EngineError`` restart the engine and run it again."""
        try:
            return action()
        except EngineError as error:
            message = str(error)
        # Outside the except block: the error's traceback would hold on to the dead engine and its
        # memory.
        if not self.restarts:
            raise EngineError(f"{message}\nIt was started anew once already. {SAVED}")
        self.restarts -= 1
        say(f"  {message.splitlines()[0]}; starting it anew with the same policy", "yellow")
        with contextlib.suppress(Exception):  # a dead engine may not shut down properly
            self.engine.close()
        del self.engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            self.engine = self.make()
            self.engine.load_policy(self.role)
            return action()
        except EngineError as again:
            raise EngineError(
                f"{again}\nIt had died with: {message.splitlines()[0]}\n{SAVED}"
            ) from again

    def pause(self) -> None:
        self.engine.pause()

    def close(self) -> None:
        if hasattr(self, "engine"):  # deleted where the restart failed
            self.engine.close()


class TransformersEngine:
    """``model.generate`` on the training backbone itself: slow, exact, works everywhere."""

    name = "transformers"

    def __init__(self, backbone: Backbone, generation: GenerationConfig) -> None:
        self.backbone = backbone
        self.generation = generation
        self.role: str | None = None
        # generate() takes its defaults from here. A model's own repetition penalty or min_p would
        # sample from another distribution than the one that log-probs describe.
        backbone.causal_lm.generation_config = NeutralDefaults()

    def load_policy(self, role: str | None) -> None:
        self.role = role

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        n: int,
        seed: int,
        advance: Callable[..., None] | None = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        heat = self.generation.temperature if temperature is None else temperature
        jobs = [i for i in range(len(prompts_ids)) for _ in range(n)]
        rollouts: list[Rollout] = []
        with torch.random.fork_rng(), self.backbone.role(self.role):
            torch.manual_seed(seed)
            for start in range(0, len(jobs), self.generation.max_num_seqs):
                batch = jobs[start : start + self.generation.max_num_seqs]
                rollouts += self._batch(prompts_ids, batch, heat)
                if advance:
                    advance(len(batch))
        return rollouts

    def stream(self, prompt_ids: Sequence[int], seed: int, heard: Callable[[int], None]) -> None:
        """Sample the response of ``generate([prompt_ids], 1, seed)``, and call ``heard`` with each
        token as soon as it is sampled.

        An exception from ``heard`` ends the generation.
        """
        ids = torch.tensor([list(prompt_ids)], device=self.backbone.device)
        with torch.random.fork_rng(), self.backbone.role(self.role):
            torch.manual_seed(seed)
            self._generate(
                ids, torch.ones_like(ids), self.generation.temperature, streamer=_Tokens(heard)
            )

    def pause(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free: the backbone belongs to the runtime."""

    def _generate(
        self, ids: torch.Tensor, mask: torch.Tensor, temperature: float, **more: Any
    ) -> Any:
        chat, generation = self.backbone.chat, self.generation
        drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
        return self.backbone.causal_lm.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=generation.max_new_tokens,
            **(drawn if temperature else {"do_sample": False}),
            eos_token_id=chat.stop_id,
            pad_token_id=chat.pad_id,
            use_cache=True,
            **more,
        )

    def _batch(
        self, prompts_ids: Sequence[Sequence[int]], batch: list[int], temperature: float
    ) -> Iterator[Rollout]:
        chat, device = self.backbone.chat, self.backbone.device
        longest = max(len(prompts_ids[i]) for i in batch)
        ids = torch.full((len(batch), longest), chat.pad_id, device=device)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):  # padding on the left: all responses start in one column
            ids[row, longest - len(prompts_ids[i]) :] = torch.tensor(prompts_ids[i], device=device)
            mask[row, longest - len(prompts_ids[i]) :] = 1
        out = self._generate(
            ids, mask, temperature, output_logits=True, return_dict_in_generate=True
        )
        new_B_T = out.sequences[:, longest:]
        logps_B_T = torch.stack(
            [
                (logits.float() / divisor(temperature))
                .log_softmax(-1)
                .gather(-1, token[:, None])[:, 0]
                for logits, token in zip(out.logits, new_B_T.T, strict=True)
            ],
            dim=1,
        )
        for row, i in enumerate(batch):
            tokens = new_B_T[row].tolist()
            finished = chat.stop_id in tokens
            length = tokens.index(chat.stop_id) + 1 if finished else len(tokens)
            yield Rollout(i, tokens[:length], logps_B_T[row, :length].tolist(), finished)


class _Tokens(BaseStreamer):
    """Passes on the tokens that ``generate`` samples; ``generate`` puts the prompt first."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self.heard, self.prompt_is_next = heard, True

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_is_next:
            self.heard(int(value))
        self.prompt_is_next = False

    def end(self) -> None:
        """Nothing to flush: every token was passed on."""
