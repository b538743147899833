"""One adapter on one task through lm-eval: the numbers that ``lm_eval`` run by itself gives, and
each question's part in them.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any
from unittest import mock

from prefloop.errors import ConfigError
from prefloop.evaluation.benchmarks.tasks import sandboxed
from prefloop.models.backbone import Backbone

Scores = dict[str, float]
"""A number for each question, by its id."""


@dataclasses.dataclass(frozen=True)
class HarnessSettings:
    """How lm-eval asks; the names are its own, and so are the defaults but for the batch size."""

    limit: int | None = None
    """First so many questions of each task."""
    batch_size: int = 8
    """Sequences of one forward pass. Padding differs with it, and so may the last bits of a
    log-likelihood.
    """
    num_fewshot: int | None = None
    """Examples before each question; ``None``: as the task says."""
    apply_chat_template: bool = False
    """Ask through the chat template of the run instead of as plain text."""
    seed: int | None = None
    """Of everything random; ``None``: lm-eval's own seeds."""

    def __post_init__(self) -> None:
        require_positive(limit=self.limit, batch_size=self.batch_size)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"num_fewshot is {self.num_fewshot}: it counts examples, 0 for none")

    def seeds(self) -> dict[str, int]:
        """lm-eval's names for it."""
        names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        return {} if self.seed is None else dict.fromkeys(names, self.seed)


def require_positive(**given: int | None) -> None:
    """Raise ``ConfigError`` for the first that is given and below 1."""
    for name, value in given.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}: give at least 1, or leave it out")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number of one task."""

    name: str
    """As lm-eval prints it: ``acc``, or ``exact_match,strict-match`` for answers that went through
    a filter.
    """
    higher_is_better: bool | None
    value: float
    stderr: float | None
    n: int
    by_question: Scores = dataclasses.field(default_factory=dict)
    """Empty where it is no mean over questions."""
    resampled: list[float] = dataclasses.field(default_factory=list)
    """Its value in bootstrap resamples of the questions, the same ones for every adapter, where
    that is how its error is found.
    """


Measured = dict[str, list[Metric]]
"""The metrics of each task, and of each group, that a name stands for."""


def language_model(backbone: Backbone, batch_size: int) -> Any:
    """lm-eval's view of the backbone, which must be ``plain`` while it is used. It asks whatever
    role is active.
    """
    from lm_eval.models.huggingface import HFLM

    # lm-eval warns that a model was handed over, which is the point here.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(
        pretrained=backbone.model,
        tokenizer=str(backbone.folder),
        batch_size=batch_size,
        trust_remote_code=False,
    )
    if backbone.config.chat_template != "model":
        model.tokenizer.chat_template = backbone.chat.tokenizer.chat_template
    return model


def measure(model: Any, loaded: Mapping[str, Any], settings: HarnessSettings) -> Measured:
    """Ask the active role everything that one name stands for: a task, or the tasks of a group.

    Not several names at a time: lm-eval fills its batches across the tasks of a call, and padding
    reaches the last bits.
    """
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    tasks = [*loaded["tasks"].values()]
    groups = loaded.get("groups") or {}
    top = [
        g
        for g in groups.values()
        if not any(g.name in other.child_names for other in groups.values())
    ]
    grouped = {task.task_name for group in top for task in group.get_all_tasks()}
    with (
        sandboxed(),
        mock.patch.object(
            evaluator, "add_env_info"
        ),  # it starts pip, which costs seconds; environment() knows
        mock.patch.object(
            evaluator, "get_git_commit_hash"
        ),  # of the current folder, with git's complaint where it is no checkout
    ):
        found = evaluator.simple_evaluate(
            model,
            tasks=[*top, *(task for task in tasks if task.task_name not in grouped)],
            limit=settings.limit,
            batch_size=settings.batch_size,
            num_fewshot=settings.num_fewshot,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
            task_manager=TaskManager(
                include_defaults=False
            ),  # all is loaded: no need to index some ten thousand files
            **settings.seeds(),
        )
    assert found is not None  # only other ranks get nothing
    return _metrics(
        found, {g.name: [t.task_name for t in g.get_all_tasks()] for g in groups.values()}
    )


def _metrics(found: Mapping[str, Any], members: Mapping[str, list[str]]) -> Measured:
    out: Measured = {}
    for name, row in found["results"].items():
        better = found["higher_is_better"].get(name) or {}
        metrics = []
        for key, value in row.items():
            metric, _, filtered = key.partition(",")
            if (
                not filtered
                or metric.endswith("_stderr")
                or not isinstance(value, int | float)
                or isinstance(value, bool)
            ):
                continue
            parts = {
                k: v
                for task in members.get(name, [name])
                for k, v in _by_question(found, task, metric, filtered).items()
            }
            mean = math.fsum(parts.values()) / len(parts) if parts else math.nan
            error = row.get(f"{metric}_stderr,{filtered}")
            metrics.append(
                Metric(
                    metric if filtered == "none" else key,
                    better.get(metric),
                    float(value),
                    float(error) if isinstance(error, int | float) else None,
                    len(parts) or int(row.get("sample_len") or 0),
                    parts if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12) else {},
                )
            )
        if metrics:
            out[name] = metrics
    return out


def _by_question(found: Mapping[str, Any], task: str, metric: str, filtered: str) -> Scores:
    """What each question adds to the mean; nothing where a metric is no number a question
    (perplexities, corpus BLEU).
    """
    rows = [
        row
        for row in (found.get("samples") or {}).get(task, [])
        if row["filter"] == filtered and metric in row
    ]
    if not all(isinstance(row[metric], int | float) for row in rows):
        return {}
    return {f"{task}/{row['doc_id']}": float(row[metric]) for row in rows}
