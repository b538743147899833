"""Candidate responses to every prompt, sampled from the SFT model or from the policy of the round
before.
"""

from __future__ import annotations

from typing import Any

from prefloop.artifacts.store import Artifact
from prefloop.base.jsonl import write_rows
from prefloop.config import DataConfig, SampleConfig
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.sampling import read_prompts, sample
from prefloop.records import to_dict
from prefloop.runs.work import Work


class Sample(Stage):
    """Prompts and a policy's adapter → ``candidates.jsonl``, a row a prompt with its responses.
    Produces ``candidates``.
    """

    name = "sample"
    produces = "candidates"
    uses = frozenset({"backbone", "generation"})

    def __init__(
        self,
        config: SampleConfig | None = None,
        data: DataConfig | None = None,
        policy: str = "sft",
    ) -> None:
        self.config = config or SampleConfig()
        self.data = data or DataConfig()
        self.policy = policy
        self.inputs = (policy,)
        if self.config.candidates > 1:
            self.needs_temperature = (
                f"draws {self.config.candidates} candidates a prompt, which would all be the same"
                " (sample.candidates)"
            )

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "config": self.config,
            "prompts": data.prompts,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        prompts = read_prompts(work, self.data)
        responses = sample(
            work,
            prompts,
            inputs[self.policy],
            self.config.candidates,
            work.runtime.seed + self.round - 1,
        )
        rows = (
            {**to_dict(p), "responses": [to_dict(r.record) for r in rs]}
            for p, rs in zip(prompts, responses, strict=True)
        )
        write_rows(work.folder / "candidates.jsonl", rows)
        flat = [r for rs in responses for r in rs]
        return {
            "prompts": len(prompts),
            "responses": len(flat),
            "length_mean": sum(len(r.text.split()) for r in flat) / len(flat),
            "finished_share": sum(r.finished for r in flat) / len(flat),
        }
