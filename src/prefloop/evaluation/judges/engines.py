"""Engines of a local judge, which continue token ids: transformers or vLLM."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefloop.config import BackboneConfig
from prefloop.data.chat import ChatFormat
from prefloop.errors import EngineError
from prefloop.models import folder
from prefloop.models.load import compute_dtype

Schema = dict[str, Any] | None


@dataclass(frozen=True)
class EngineSettings:
    """What an engine needs to start."""

    model: str
    """The name that the judge was given."""
    folder: Path
    chat: ChatFormat
    temperature: float
    max_tokens: int
    """Longest reply."""
    batch_size: int
    """Questions side by side."""


class Engine(Protocol):
    """Continues token ids."""

    context: int | None
    """Most tokens of prompt and reply together; ``None`` without a limit."""

    def continuations(
        self, prompts_ids: Sequence[list[int]], schemas: Sequence[Schema]
    ) -> list[list[int]]:
        """The reply to each prompt, held to its schema where it has one. A reply that ended by
        itself ends in its stop token.
        """
        ...


def misread(tokenizer: PreTrainedTokenizerBase) -> str:
    """Why xgrammar cannot hold replies of this tokenizer to a schema; empty where it can.

    Before 0.2.8 xgrammar goes by the decoder alone. It takes the byte-level vocabulary of some
    tokenizers that transformers 5 has converted for another kind: no token is a blank to it, and a
    reply ends where its schema wants one.
    """
    if not importlib.util.find_spec("xgrammar"):
        return ""  # then vLLM is missing too, and its engine says so
    import xgrammar

    text = '{"grade": "a b"}'
    ids = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.decode(ids) != text:
        return ""  # a vocabulary without these characters shows nothing
    read = xgrammar.TokenizerInfo.from_huggingface(tokenizer).decoded_vocab
    if b"".join(read[i] for i in ids) == text.encode():
        return ""
    return (
        f"xgrammar {importlib.metadata.version('xgrammar')} misreads this model's tokenizer (a"
        " newer one may not)"
    )


class JudgeTransformers:
    """``model.generate``, padded on the left."""

    def __init__(self, settings: EngineSettings) -> None:
        self.chat, self.temperature, self.max_tokens = (
            settings.chat,
            settings.temperature,
            settings.max_tokens,
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = compute_dtype(BackboneConfig(model=settings.model, precision="bf16"), self.device)
        blank = folder.blank(folder.configuration(settings.folder), settings.model)
        folder.require_weights(settings.folder, blank)
        self.chat.require_within(blank.get_input_embeddings().weight.shape[0])
        self.model = folder.weights(settings.folder, settings.model, dtype, self.device).eval()
        self.context: int | None = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )
        # A model's own repetition penalty would change its verdicts.
        self.model.generation_config = GenerationConfig()

    @torch.no_grad()
    def continuations(
        self, prompts_ids: Sequence[list[int]], schemas: Sequence[Schema]
    ) -> list[list[int]]:
        longest = max(len(ids) for ids in prompts_ids)
        ids_B_T = torch.full((len(prompts_ids), longest), self.chat.pad_id, device=self.device)
        mask_B_T = torch.zeros_like(ids_B_T)
        for row, ids in enumerate(prompts_ids):
            ids_B_T[row, longest - len(ids) :] = torch.tensor(ids, device=self.device)
            mask_B_T[row, longest - len(ids) :] = 1
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            out_B_T = self.model.generate(
                input_ids=ids_B_T,
                attention_mask=mask_B_T,
                max_new_tokens=self.max_tokens,
                eos_token_id=self.chat.stop_id,
                pad_token_id=self.chat.pad_id,
                **(sampling if self.temperature > 0 else {"do_sample": False}),
            )
        return [_until_stop(row, self.chat.stop_id) for row in out_B_T[:, longest:].tolist()]


class JudgeVLLM:
    """vLLM: in this process on a CPU, in one of its own on a GPU. Replies are held to their JSON
    schema.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from prefloop.rollouts.check import missing
        from prefloop.rollouts.vllm import GRAPHS, forget_settings, quiet

        if problem := missing():
            raise EngineError(
                f"{problem}: take the transformers engine for the judge, or an openai: judge"
            )
        self.chat, self.temperature, self.max_tokens = (
            settings.chat,
            settings.temperature,
            settings.max_tokens,
        )
        # The engine that sampled the answers may have run in this process, and the rest of its
        # memory pool breaks a second engine.
        apart = torch.cuda.is_available()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(apart))
        if apart:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        forget_settings()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if apart:
            free, total = torch.cuda.mem_get_info()  # a trainer may hold some
            options: dict[str, Any] = {
                "gpu_memory_utilization": round(0.9 * free / total, 3),
                "compilation_config": GRAPHS,
            }
        else:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            options = {"gpu_memory_utilization": 0.1, "enforce_eager": True}
        threads, log = torch.get_num_threads(), io.StringIO()
        try:
            with quiet(log):
                self.llm = self._start(settings, options)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            last = "\n  ".join(
                [*log.getvalue().strip().splitlines()[-4:], *str(error).strip().splitlines()[-3:]]
            )
            raise EngineError(
                f"vLLM did not start for judge '{settings.model}'; its last lines:\n  {last}\nTry"
                " the transformers engine"
            ) from error
        torch.set_num_threads(threads)
        self.context: int | None = int(self.llm.llm_engine.model_config.max_model_len)

    def _start(self, settings: EngineSettings, options: dict[str, Any]) -> Any:
        from vllm import LLM

        return LLM(
            model=str(settings.folder),
            trust_remote_code=False,
            max_num_seqs=settings.batch_size,
            max_model_len=-1,  # the model's context, or as much of it as fits into memory
            enable_prefix_caching=True,
            disable_log_stats=True,
            generation_config="vllm",  # no sampling defaults of the model
            # Without blanks, which could go on for ever.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            seed=0,
            **options,
        )

    def continuations(
        self, prompts_ids: Sequence[list[int]], schemas: Sequence[Schema]
    ) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        params = [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                stop_token_ids=[self.chat.stop_id],
                structured_outputs=(
                    StructuredOutputsParams(json=schema, disable_any_whitespace=True)
                    if schema
                    else None
                ),
            )
            for schema in schemas
        ]
        try:
            outputs = self.llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts_ids], params, use_tqdm=False
            )
        except Exception as error:  # from vLLM, CUDA or a worker: the engine cannot go on
            raise EngineError(
                f"vLLM stopped while judging: {type(error).__name__}: {error}"
            ) from error
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def _until_stop(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids
