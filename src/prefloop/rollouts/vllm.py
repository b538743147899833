"""vLLM in the training process. The only module that imports vllm.

The policy is handed over from memory as merged weights: the backbone's dequantised weights plus the adapter, in the trainer's compute
precision. So vLLM samples from the very policy that is trained, no adapter id can go stale, and generation pays nothing for LoRA (on two
CPU cores an adapter inside vLLM costs three quarters of the speed). The prefix cache is reset with every hand-over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from prefloop.config import GenerationConfig
from prefloop.errors import EngineError
from prefloop.models.backbone import Backbone
from prefloop.rollouts.engine import Rollout


def missing() -> str | None:
    """What is absent, or ``None`` when vLLM can be imported."""
    return None if importlib.util.find_spec("vllm") else "no module named vllm"


class VLLMEngine:
    """In-process engine on the GPU, or vLLM's CPU build."""

    name = "vllm"

    def __init__(self, backbone: Backbone, generation: GenerationConfig) -> None:
        self.backbone = backbone
        self.generation = generation
        cpu = backbone.device.type == "cpu"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(generation.kv_cache_gb))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        threads = torch.get_num_threads()
        log = io.StringIO()
        try:
            with quiet(log):
                self.llm: Any = self._start(cpu)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            last = "\n  ".join([*log.getvalue().strip().splitlines()[-4:], *str(error).strip().splitlines()[-3:]])
            raise EngineError(
                f"vLLM did not start; its last lines:\n  {last}\nTry --rollout transformers, or lower generation.max_num_seqs"
            ) from error
        torch.set_num_threads(threads)

    def _start(self, cpu: bool) -> Any:
        from vllm import LLM

        return LLM(
            model=str(self.backbone.folder),
            dtype="float32" if self.backbone.compute_dtype == torch.float32 else "bfloat16",
            max_num_seqs=self.generation.max_num_seqs,
            max_model_len=self.backbone.config.max_length,
            gpu_memory_utilization=0.1 if cpu else self.generation.gpu_memory_utilization,
            enforce_eager=cpu,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            generation_config="vllm",  # no sampling defaults of the model: log-probs assume plain sampling
            seed=0,
        )

    def load_policy(self, role: str | None) -> None:
        weights = self.backbone.merged_weights(role)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()

    def generate(
        self, prompts_ids: Sequence[Sequence[int]], n: int, seed: int, advance: Callable[..., None] | None = None
    ) -> list[Rollout]:
        from vllm import SamplingParams

        params = SamplingParams(
            n=n,
            temperature=self.generation.temperature,
            max_tokens=self.generation.max_new_tokens,
            stop_token_ids=[self.backbone.chat.stop_id],
            ignore_eos=True,  # the model's own EOS list may hold other tokens than the one that ends a turn
            logprobs=0,
            detokenize=False,
        )
        # The same cache state and the same random stream for every call: a resumed run samples what the first one would have.
        self.llm.reset_prefix_cache()
        rollouts: list[Rollout] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            group = max(1, 2 * self.generation.max_num_seqs // n)
            for start in range(0, len(prompts_ids), group):
                batch = [{"prompt_token_ids": list(ids)} for ids in prompts_ids[start : start + group]]
                outputs = self.llm.generate(batch, params, use_tqdm=False)
                for i, output in enumerate(outputs, start):
                    for choice in sorted(output.outputs, key=lambda o: o.index):
                        ids = list(choice.token_ids)
                        logps = [step[token].logprob for step, token in zip(choice.logprobs, ids, strict=True)]
                        rollouts.append(Rollout(i, ids, logps, bool(ids) and ids[-1] == self.backbone.chat.stop_id))
                if advance:
                    advance(n * len(batch))
        return rollouts

    def close(self) -> None:
        """Shut the engine down."""
        engine, self.llm = self.llm, None
        engine.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def quiet(log: io.StringIO) -> Iterator[None]:
    """Keep what libraries (C++ too) write to the terminal within this block in ``log`` instead."""
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
