"""Simulated annotators: they vote by Bradley-Terry on a disclosed gold score, each with a noise of
their own.
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
    """Prefers response 0 with probability σ((gold₀ - gold₁) / noise); noise 0 always takes the
    better one.
    """

    name: str
    noise: float

    def vote(self, gold_0: float, gold_1: float, rng: random.Random) -> Vote:
        """One vote; ``rng`` makes it repeatable."""
        difference = gold_0 - gold_1
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
    """The comparison with a vote of every annotator; ``gold`` holds the scores of its two
    responses.
    """
    rng = random.Random(
        int.from_bytes(hashlib.sha256(f"{seed}:{comparison.id}".encode()).digest()[:8])
    )
    votes = [SimulatedAnnotator(a.name, a.noise).vote(*gold, rng) for a in annotators]
    return dataclasses.replace(comparison, votes=votes)


def draw_pairs(
    responses: Sequence[Response], count: int, rng: random.Random
) -> list[tuple[int, int]]:
    """``count`` distinct pairs of different responses, in random order and orientation."""
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
    """Comparisons of one prompt's candidates with a vote of every annotator; the gold score decides
    votes and is not written down.
    """
    rng = random.Random(int.from_bytes(hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest()[:8]))
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
