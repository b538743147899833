"""Simulated annotators. They vote by Bradley-Terry on a disclosed gold score, each with its own
noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
from collections.abc import Mapping, Sequence

from prefloop.config import AnnotatorConfig
from prefloop.data.replies import differ
from prefloop.records import Comparison, Prompt, Response, Vote


@dataclasses.dataclass(frozen=True)
class SimulatedAnnotator:
    """Prefers the first response with probability σ((gold of the first - gold of the second) /
    noise). With noise 0 it always takes the better one.
    """

    name: str
    noise: float

    def vote(self, gold_first: float, gold_second: float, rng: random.Random) -> Vote:
        """One vote, by the gold scores of the first and the second response; ``rng`` makes it
        repeatable.
        """
        difference = gold_first - gold_second
        draw = rng.random()
        if self.noise == 0:
            p = 0.5 if difference == 0 else float(difference > 0)
        else:
            p = 1 / (1 + math.exp(-max(-60.0, min(60.0, difference / self.noise))))
        return Vote(self.name, 0 if draw < p else 1)


def cast(
    comparison: Comparison,
    gold: tuple[float, float],
    annotators: Sequence[AnnotatorConfig],
    seed: int,
) -> Comparison:
    """The comparison with a vote of every annotator. ``gold`` holds the scores of its two
    responses.
    """
    rng = _rng(seed, comparison.id)
    votes = [SimulatedAnnotator(a.name, a.noise).vote(*gold, rng) for a in annotators]
    return dataclasses.replace(comparison, votes=votes)


def _rng(seed: int, id: str) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest()[:8]))


def draw_pairs(
    responses: Sequence[Response], count: int, rng: random.Random
) -> list[tuple[int, int]]:
    """Up to ``count`` distinct pairs of different responses, in random order and orientation."""
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(responses)), 2)
        if differ(responses[i], responses[j])
    ]
    rng.shuffle(pairs)
    return [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs[:count]]


def simulate(
    prompt: Prompt,
    responses: Sequence[Response],
    gold: Mapping[int, float],
    annotators: Sequence[AnnotatorConfig],
    pairs: int,
    seed: int,
) -> list[Comparison]:
    """Comparisons of one prompt's candidates with a vote of every annotator. The gold score decides
    the votes and is not written down.
    """
    rng = _rng(seed, prompt.id)
    people = [SimulatedAnnotator(a.name, a.noise) for a in annotators]
    return [
        Comparison(
            id=f"{prompt.id}/{i}-{j}",
            prompt=prompt.prompt,
            responses=[responses[i], responses[j]],
            votes=[person.vote(gold[i], gold[j], rng) for person in people],
        )
        for i, j in draw_pairs(responses, pairs, rng)
    ]
