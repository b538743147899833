"""vLLM in the training process. The only module that imports vllm.

The policy is handed over from memory as merged weights: the backbone's dequantised weights plus the adapter, in the trainer's compute
precision. So vLLM samples from the very policy that is trained, no adapter id can go stale, and generation pays nothing for LoRA (on two
CPU cores an adapter inside vLLM costs three quarters of the speed). The prefix cache is reset with every hand-over.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
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
        try:
            from vllm import LLM

            self.llm: Any = LLM(
                model=str(backbone.folder),
                dtype="float32" if backbone.compute_dtype == torch.float32 else "bfloat16",
                max_num_seqs=generation.max_num_seqs,
                max_model_len=backbone.config.max_length,
                gpu_memory_utilization=0.1 if cpu else generation.gpu_memory_utilization,
                enforce_eager=cpu,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                seed=0,
            )
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            last = "\n  ".join(str(error).strip().splitlines()[-5:])
            raise EngineError(
                f"vLLM did not start; its last lines:\n  {last}\nTry --rollout transformers, or lower generation.max_num_seqs"
            ) from error
        torch.set_num_threads(threads)

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
            top_p=self.generation.top_p,
            max_tokens=self.generation.max_new_tokens,
            stop_token_ids=[self.backbone.chat.stop_id],
            ignore_eos=False,
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
                for i, output in enumerate(self.llm.generate(batch, params, use_tqdm=False), start):
                    for choice in sorted(output.outputs, key=lambda o: o.index):
                        ids = list(choice.token_ids)
                        logps = [step[token].logprob for step, token in zip(choice.logprobs, ids, strict=True)]
                        rollouts.append(Rollout(i, ids, logps, choice.finish_reason == "stop"))
                        if advance:
                            advance(1)
        return rollouts

    def close(self) -> None:
        engine, self.llm = self.llm, None
        engine.llm_engine.engine_core.shutdown()
