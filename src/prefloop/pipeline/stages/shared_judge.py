"""Opens a run's judge without a second model in memory next to the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prefloop.artifacts.references import identity_of
from prefloop.config import JudgeConfig
from prefloop.evaluation.judges.open import open_judge
from prefloop.pipeline.stage import backbone_identity
from prefloop.records import Prompt
from prefloop.runs.runtime import Runtime

if TYPE_CHECKING:
    from prefloop.evaluation.judges.judge import ScoreJudge
    from prefloop.evaluation.judges.language_model import ModelJudge

_SAME_BACKBONE = ("model", "adapter", "precision", "max_length", "chat_template")


def open_beside(
    runtime: Runtime, spec: str, asking: JudgeConfig, prompts: Sequence[Prompt]
) -> ModelJudge | ScoreJudge:
    """The judge that ``spec`` names: on the run's backbone where its reward models belong to it,
    else ``reward:`` and ``local:`` get the memory of the run's model and engine.
    """
    opened = partial(
        open_judge, spec, asking, prompts=prompts, models=runtime.store.root / "models"
    )
    if spec.startswith("reward:") and _is_loaded_for(opened(), runtime):
        runtime.close()
        return opened(backbone=runtime.backbone)
    if spec.startswith(("reward:", "local:")):
        runtime.release()
    return opened()


def _is_loaded_for(judge: Any, runtime: Runtime) -> bool:
    """Whether the run's backbone is in memory and is the one that the judge's reward models were
    trained on.
    """
    if "backbone" not in vars(runtime):
        return False  # judged from the cache alone, nothing need be loaded
    trained_on = identity_of(judge.grader.folder).get("backbone", {})
    here = backbone_identity(runtime)
    return all(trained_on.get(name) == here[name] for name in _SAME_BACKBONE)
