"""Reference log-probs of every response, computed once and kept: each loss that needs a reference
reuses them.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file

from prefloop.artifacts.store import Artifact
from prefloop.base.console import progress
from prefloop.data.encode import Encoder
from prefloop.data.groups import write_groups
from prefloop.data.packing import packs
from prefloop.labeling.aggregation import aggregation
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.comparisons import require_pairs, unusable_of
from prefloop.runs.work import Work
from prefloop.training.policy import REFERENCE, reference_B

_AT_ONCE = 256
"""Groups that are packed together."""


class Reference(Stage):
    """SFT adapter and comparisons → ``logps.safetensors``, the summed log-prob of each response by
    key. Produces ``reference``.
    """

    name = "reference"
    produces = "reference"
    inputs = ("sft", "comparisons")
    uses = frozenset({"backbone", "temperature"})
    needs_temperature = "divides log-probs by it"

    def parts(self) -> dict[str, Any]:
        return {}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        require_pairs(inputs["comparisons"], "what the reference is for")
        backbone, temperature = work.runtime.backbone, work.runtime.generation.temperature
        encoder = Encoder(backbone.chat, backbone.config.max_length)
        groups = write_groups(
            inputs["comparisons"] / "comparisons.jsonl",
            work.scratch / "groups.arrow",
            encoder,
            aggregation("share"),
            unusable=unusable_of(inputs["comparisons"], work.folder),
        )
        responses = groups[len(groups) - 1].document.keys[-1] + 1
        logp_sum = torch.zeros(responses)
        backbone.add_role(REFERENCE, start=inputs["sft"].path, frozen=True)
        try:
            with progress(self.name, responses, "response") as advance:
                for start in range(0, len(groups), _AT_ONCE):
                    part = [g.document for g in groups[start : start + _AT_ONCE]]
                    for pack in packs(part, backbone.scoring_tokens):
                        logp_sum[list(pack.keys)] = reference_B(
                            backbone, pack.to(backbone.device), temperature
                        ).cpu()
                        advance(len(pack.keys))
        finally:
            backbone.drop_role(REFERENCE)
        save_file({"logp_sum": logp_sum}, work.folder / "logps.safetensors")
        return {"responses": responses, "logp_mean": float(logp_sum.mean())}
