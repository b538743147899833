"""Mean grades of results whose responses were graded one by one: by a language model, a rubric, a
reward model, a function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prefloop.data.replies import Reply, same_as
from prefloop.evaluation.answers import Answers
from prefloop.evaluation.judges.verdict import Grade
from prefloop.stats.intervals import Interval, clustered_mean


@dataclass(frozen=True)
class MeanGrade:
    """The mean over prompts of one result's grades."""

    name: str
    """The result."""
    grade: Interval
    parts: dict[str, Interval]
    """By criterion of a rubric, or member of a reward ensemble."""
    n_graded: int
    """Responses with a grade; those that failed or held none are left out."""


def mean_grades(
    sides: Mapping[str, Answers],
    given: Iterable[tuple[str, Reply, Grade]],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[MeanGrade, ...]:
    """The mean grade of each result that has one.

    ``given`` holds (prompt id, response, grade). Intervals resample prompts and responses.
    """
    known = {
        (prompt_id, _key(reply)): grade
        for prompt_id, reply, grade in given
        if math.isfinite(grade.score)
    }
    means = []
    for name, side in sides.items():
        graded = {
            prompt_id: grades
            for prompt_id, (_, replies) in side.items()
            if (
                grades := [
                    known[asked]
                    for reply in replies
                    if (asked := (prompt_id, _key(reply))) in known
                ]
            )
        }
        if not graded:
            continue

        def mean(values: Mapping[str, list[float]]) -> Interval:
            return clustered_mean(values, seed=seed, resamples=resamples, level=level)

        parts = list(next(iter(graded.values()))[0].parts)
        means.append(
            MeanGrade(
                name,
                mean({i: [grade.score for grade in grades] for i, grades in graded.items()}),
                {
                    part: mean({i: [g.parts[part] for g in grades] for i, grades in graded.items()})
                    for part in parts
                },
                sum(map(len, graded.values())),
            )
        )
    return tuple(means)


def _key(reply: Reply) -> str:
    return json.dumps(same_as(reply))
