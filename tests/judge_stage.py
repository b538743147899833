"""The stage ``judge`` on answers that are given, without a run around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.artifacts.codec import read
from prefloop.artifacts.results import BASELINE, Evaluation
from prefloop.artifacts.store import Artifact
from prefloop.base.jsonl import write_rows
from prefloop.config import EvaluateConfig
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages.compare import AGAIN, Compare
from prefloop.records import Message, Prompt, to_dict
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work


class Answered(Stage):
    """One answer of a policy to every prompt."""

    def __init__(self, policy: str, texts: list[str]) -> None:
        self.name = self.produces = f"respond-{policy}"
        self.texts = texts

    def parts(self) -> dict[str, Any]:
        return {"texts": self.texts}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        measured = {"finished": True, "kl": 0.0}
        rows = [
            {
                **to_dict(Prompt(f"p{i}", [Message("user", f"Question {i}?")])),
                "responses": [{"text": text, "reward": float(len(text)), **measured}],
            }
            for i, text in enumerate(self.texts)
        ]
        write_rows(work.folder / "responses.jsonl", rows)
        return {}


def evaluated(
    runtime: Runtime, texts: Mapping[str, list[str]], gold: str | None = None, **config: Any
) -> Evaluation:
    """What ``compared`` measures."""
    return read(Evaluation, compared(runtime, texts, gold, **config).metrics)


def compared(
    runtime: Runtime, texts: Mapping[str, list[str]], gold: str | None = None, **config: Any
) -> Artifact:
    """What the stage makes of ``texts`` by policy, SFT's among them."""
    answers = {**texts, AGAIN: texts[BASELINE]}
    inputs = {
        f"respond-{policy}": Answered(policy, each).run(runtime) for policy, each in answers.items()
    }
    stage = Compare(list(texts), EvaluateConfig(samples=1, **{"resamples": 100, **config}), gold)
    return stage.run(runtime, **inputs)
