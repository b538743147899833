"""vLLM in the training process. Only this module, ``handover.py`` and the judge
(``evaluation/judges/engines.py``) import vllm.

The policy is handed over from memory, as merged weights or as an adapter (``generation.handover``).
So vLLM samples from exactly the policy that is trained, with weights that are dequantized or the
same 4 bits (``generation.weights``), and no adapter id can go stale. Every hand-over resets the
prefix cache. On a GPU vLLM's memory goes back to the trainer between phases. No copy is kept on the
host: vLLM's weights are written from the trainer's own 4-bit weights.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from prefloop.config import GenerationConfig
from prefloop.config.adapters import others
from prefloop.errors import EngineError
from prefloop.models.backbone import Backbone
from prefloop.models.load import stored_quantization
from prefloop.models.merge import plain_weights, require_mergeable
from prefloop.models.rope import overrides
from prefloop.rollouts.check import NOT_INTO_4_BITS, NOT_ON_CPU, RANKS, TOO_HIGH
from prefloop.rollouts.engine import Rollout
from prefloop.rollouts.handover import Writer, register

GIB = 2**30
BATCHED_TOKENS = 8192
"""Most prompt tokens that vLLM reads at a time: more would need more workspace and be no faster."""
WORKSPACE = 2 * GIB
"""About what vLLM's activations, graphs and sampler need besides weights and cache."""
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""CUDA graphs of decoding steps without compilation: they generate as fast as compiled ones
(docs/benchmarks.md) and start a minute and a half sooner.
"""


class VLLMEngine:
    """In-process engine on the GPU, or vLLM's CPU build."""

    name = "vllm"

    def __init__(self, backbone: Backbone, generation: GenerationConfig) -> None:
        self.backbone = backbone
        self.generation = generation
        self.cpu = backbone.device.type == "cpu"
        stored = stored_quantization(backbone.folder) is not None
        if stored and self.cpu:
            raise EngineError(f"{backbone.config.model} is {NOT_ON_CPU}")
        self.quantized = not self.cpu and (stored or generation.weights == "nf4")
        card = backbone.method.card
        self.by_adapter = generation.handover == "adapter" or (
            generation.handover == "auto" and self.quantized
        )
        if self.quantized and not self.by_adapter:
            raise EngineError(f"{backbone.config.model} is stored in 4 bits: {NOT_INTO_4_BITS}")
        if self.by_adapter and card.handover != "adapter":
            raise EngineError(
                f"{backbone.config.model} is stored in 4 bits, where vLLM takes adapters alone, and"
                f" not those of method {card.name}: set --rollout transformers, or take one of"
                f" {others('adapter')}"
            )
        if not self.by_adapter:
            require_mergeable(backbone.causal_lm)
        self.seconds: dict[str, float] = {}
        """Seconds of the last hand-over, wake-up and sleep."""
        self._adapter: Any = None
        self._version = 0
        self._asleep = self._twin = False
        self._given_back = 0
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if self.cpu:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(generation.kv_cache_gb or 1)))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        else:
            gc.collect()
            torch.cuda.empty_cache()  # vLLM would count torch's unused memory as taken
        threads = torch.get_num_threads()
        log = io.StringIO()
        try:
            with quiet(log):
                self.llm: Any = self._start()
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            last = "\n  ".join(
                [*log.getvalue().strip().splitlines()[-4:], *str(error).strip().splitlines()[-3:]]
            )
            raise EngineError(
                f"vLLM did not start; its last lines:\n  {last}\nTry --rollout transformers, or"
                " lower generation.max_num_seqs or generation.kv_cache_gb"
            ) from error
        torch.set_num_threads(threads)
        self.writer: Writer | None = None
        if not self.quantized:
            self.writer = self._in_worker(
                lambda w: Writer.find(backbone.causal_lm, w.model_runner.get_model())
            )
        if self._sleeps:
            self.pause()

    @property
    def _sleeps(self) -> bool:
        return not self.cpu and self.generation.sleep and not self.quantized

    def _start(self) -> Any:
        from vllm import LLM

        config, generation = self.backbone.config, self.generation
        options: dict[str, Any] = {"gpu_memory_utilization": 0.1, "enforce_eager": True}
        if not self.cpu:
            # vLLM checks that this share of the card is free; the cache has a size of its own.
            options = {
                "gpu_memory_utilization": 0.01,
                "kv_cache_memory_bytes": self._kv_cache_bytes(),
                "enable_sleep_mode": self._sleeps,
                "max_num_batched_tokens": max(BATCHED_TOKENS, config.max_length),
                "compilation_config": GRAPHS,
            }
        if self.quantized:
            # vLLM quantizes as it loads, as the trainer does: the bytes are the same.
            options["quantization"] = "bitsandbytes"
        if self.by_adapter:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": self._rank()}
        return LLM(
            model=str(self.backbone.folder),
            trust_remote_code=False,
            dtype="float32" if self.backbone.compute_dtype == torch.float32 else "bfloat16",
            max_num_seqs=generation.max_num_seqs,
            max_model_len=config.max_length,
            hf_overrides=overrides(self.backbone.folder, config.rope, config.model),
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            # no sampling defaults of the model: log-probs assume plain sampling
            generation_config="vllm",
            seed=0,
            **options,
        )

    def _rank(self) -> int:
        """The rank that vLLM makes room for. Raises ``ValueError`` for a policy of a higher rank
        than vLLM supports.
        """
        rank = self.backbone.config.adapter.r * self.backbone.method.card.file_rank
        if rank > RANKS[-1]:
            raise ValueError(TOO_HIGH)
        return next(r for r in RANKS if r >= rank)

    def _kv_cache_bytes(self) -> int:
        if self.generation.kv_cache_gb is not None:
            return int(self.generation.kv_cache_gb * 2**30)
        weights = plain_weights(self.backbone.causal_lm)
        text = self.backbone.causal_lm.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        itemsize = self.backbone.compute_dtype.itemsize
        # The cache comes in blocks of 16 tokens: room for a partly filled block of each response
        # and for the one that vLLM keeps.
        tokens = (self.generation.max_num_seqs + 1) * (self.backbone.config.max_length + 32)
        wanted = 2 * text.num_hidden_layers * heads * size * itemsize * tokens
        free, total = torch.cuda.mem_get_info(self.backbone.device)
        full = sum(
            math.prod(w.shape) * (0.6 if self.quantized and w.layer is not None else itemsize)
            for w in weights
        )
        rank = self._rank() if self.by_adapter else 0
        full += (
            rank * itemsize * sum(sum(w.shape) for w in weights if w.layer is not None)
        )  # room for the adapter
        left = int(free - full - WORKSPACE)
        if not self._sleeps:
            left = int(left * 0.4)  # a cache that stays must leave room for the trainer
        if left < wanted / 64:
            raise ValueError(
                f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free; vLLM's weights take"
                f" {full / GIB:.1f}, its workspace about {WORKSPACE / GIB:.0f}: nothing is left for"
                " the KV cache. "
                + ("Take a smaller model" if self.quantized else "Set generation.weights nf4")
            )
        return min(wanted, left)

    def _in_worker(self, function: Callable[[Any], Any]) -> Any:
        return self.llm.collective_rpc(function)[0]

    def load_policy(self, role: str | None) -> None:
        try:
            self._load_policy(role)
        except Exception as error:  # whatever failed, vLLM's weights are unknown now
            raise EngineError(
                f"vLLM did not take the policy over: {type(error).__name__}: {error}"
            ) from error

    def _load_policy(self, role: str | None) -> None:
        started = time.perf_counter()
        if self._asleep:
            if torch.cuda.mem_get_info(self.backbone.device)[0] < self._given_back + WORKSPACE:
                # vLLM maps memory outside of torch, which still holds that of the trainer's passes.
                torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        merged = not self.by_adapter or role is None
        woke = time.perf_counter()
        if not self.quantized and (merged or self._asleep or not self._twin):
            self._write(None if self.by_adapter else role)
        self._adapter = None if merged else self._register(str(role))
        self._twin = self.by_adapter
        if not self.cpu:
            torch.cuda.synchronize()
        handed = time.perf_counter()
        if self._asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self.llm.reset_prefix_cache()
        self.seconds |= {
            "handover": handed - woke,
            "wake": time.perf_counter() - started - (handed - woke),
        }

    def _write(self, role: str | None) -> None:
        if self.writer is not None:
            self.writer.write(role)
        else:
            weights = self.backbone.merged_weights(role)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def _register(self, role: str) -> Any:
        from vllm.lora.request import LoRARequest

        self._version += 1
        # Copies: vLLM multiplies B by the scale in place.
        tensors = {name: t.detach().clone() for name, t in self.backbone.method.state(role).items()}
        config = self.backbone.method.describe(role)
        self._in_worker(lambda worker: register(worker, self._version, tensors, config))
        return LoRARequest(f"{role}-{self._version}", self._version, "in-memory")

    def pause(self) -> None:
        if self._sleeps and not self._asleep:
            started = time.perf_counter()
            before, _ = torch.cuda.mem_get_info(self.backbone.device)
            self.llm.sleep(level=2)
            self._given_back = torch.cuda.mem_get_info(self.backbone.device)[0] - before
            self._asleep, self._twin = True, False
            self.seconds["sleep"] = time.perf_counter() - started

    def generate(
        self,
        prompts_ids: Sequence[Sequence[int]],
        n: int,
        seed: int,
        advance: Callable[..., None] | None = None,
        temperature: float | None = None,
    ) -> list[Rollout]:
        heat = self.generation.temperature if temperature is None else temperature
        from vllm import SamplingParams

        params = SamplingParams(
            n=n,
            temperature=heat,
            max_tokens=self.generation.max_new_tokens,
            stop_token_ids=[self.backbone.chat.stop_id],
            # The model's own EOS list may hold other tokens than the one that ends a turn.
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        # Every call starts from the same cache state and the same random stream, so that a resumed
        # run samples the same responses as one that was not interrupted.
        self.llm.reset_prefix_cache()
        rollouts: list[Rollout] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            group = max(1, 2 * self.generation.max_num_seqs // n)
            for start in range(0, len(prompts_ids), group):
                batch = [
                    {"prompt_token_ids": list(ids)} for ids in prompts_ids[start : start + group]
                ]
                try:
                    outputs = self.llm.generate(
                        batch, params, use_tqdm=False, lora_request=self._adapter
                    )
                except Exception as error:  # from vLLM, CUDA or a worker: the engine is lost
                    raise EngineError(
                        f"vLLM stopped while sampling: {type(error).__name__}: {error}"
                    ) from error
                for i, output in enumerate(outputs, start):
                    for choice in sorted(output.outputs, key=lambda o: o.index):
                        ids = list(choice.token_ids)
                        logps = [
                            step[token].logprob
                            for step, token in zip(choice.logprobs, ids, strict=True)
                        ]
                        rollouts.append(
                            Rollout(
                                i, ids, logps, bool(ids) and ids[-1] == self.backbone.chat.stop_id
                            )
                        )
                if advance:
                    advance(n * len(batch))
        return rollouts

    def close(self) -> None:
        """Shut the engine down."""
        engine, self.llm = self.llm, None
        self.writer = None
        if engine is not None:
            # vLLM's allocator complains about pages that a sleeping engine has freed already.
            with quiet(io.StringIO()):
                engine.llm_engine.engine_core.shutdown()
                del engine
                gc.collect()


def forget_settings() -> None:
    """Make vLLM read its environment variables again; it keeps those of the first engine in this
    process.
    """
    from vllm import envs

    envs.disable_envs_cache()


@contextlib.contextmanager
def quiet(log: io.StringIO) -> Iterator[None]:
    """Redirect into ``log`` what libraries, C++ ones too, write to the terminal in this block."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(kept, 1):
                os.dup2(original, number)
                os.close(original)
            file.seek(0)
            log.write(file.read())
