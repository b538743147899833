"""Every model against every other on the same prompts: win rates and how far they can be trusted.

A *duel* is two models; its comparisons are pairs of their responses to one prompt. The prompt is
the unit that was sampled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from prefloop.base.console import progress
from prefloop.base.redact import without_secrets
from prefloop.data.replies import Reply, differ, reply_of, response_of, text_of
from prefloop.errors import ConfigError, DataError, JudgeError
from prefloop.evaluation.answers import Answers, require_same_prompts
from prefloop.evaluation.grades import MeanGrade, mean_grades
from prefloop.evaluation.judges.assessor import Judge, OwnJudge, Pair, judge_of
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.judge import prepare
from prefloop.evaluation.judges.tally import progress_of
from prefloop.evaluation.judges.usage import Usage
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.labeling.pool import content_of
from prefloop.records import Comparison, Conversation
from prefloop.stats.bradley_terry import Game, Ranking, rank
from prefloop.stats.intervals import SignTest, WinRate, sign_test, verdict_win_rate
from prefloop.stats.length_control import (
    LengthControlled,
    length_controlled_leaderboard,
    length_controlled_win_rate,
)
from prefloop.stats.position_bias import PositionBias, position_bias
from prefloop.stats.prediction_powered import (
    Corrected,
    Pairs,
    PredictionPowered,
    RoganGladen,
    prediction_powered,
    rogan_gladen,
)

C = TypeVar("C", bound=Corrected)


@dataclass(frozen=True)
class Duel:
    """One model against another: rates are a's over b."""

    a: str
    b: str
    win_rate: WinRate
    sign_test: SignTest
    length_controlled: LengthControlled
    """The win rate at equal length, in characters; with the prompts' difficulties where other
    models share the baseline b.
    """
    position: PositionBias | None
    """How exchanging the responses changed the verdicts; ``None`` for a judge that sees one
    response at a time.
    """
    rogan_gladen: RoganGladen | None
    """Corrected for the judge's errors against people's votes; ``None`` where ``uncorrected`` gives
    the reason.
    """
    prediction_powered: PredictionPowered | None
    uncorrected: tuple[str, ...]
    """Why a correction is missing; empty without votes."""
    n_comparisons: int
    """Pairs of responses compared, those that failed left out."""
    n_failed: int
    """Pairs without a verdict because a request failed after all retries; the same command asks
    them again.
    """
    n_disagreed: int
    """Comparisons whose two orders disagreed, hence ties."""
    failed: tuple[str, ...]
    """Ids of the prompts of pairs that failed."""


@dataclass(frozen=True)
class PairVerdict:
    """The judge's verdict on one pair of responses."""

    id: str
    """Of the prompt."""
    a: str
    b: str
    """The results that the responses belong to."""
    score: float | None
    """1 when a wins, 0 when b wins, 0.5 for a tie; ``None`` for a pair that failed."""


@dataclass(frozen=True)
class Judged:
    """All duels of some models by one judge."""

    judge: str
    address: str
    """Of the endpoint; empty for a judge on this machine."""
    duels: tuple[Duel, ...]
    ranking: Ranking | None
    """Strengths of more than two models."""
    grades: tuple[MeanGrade, ...]
    """Of each result, in the order of the results; empty for a judge that sees two responses at a
    time.
    """
    verdicts: tuple[PairVerdict, ...]
    failures: tuple[str, ...]
    """Why comparisons failed, each reason once."""
    n_asked: int
    """Questions put to the judge in this run: two for a comparison in both orders, one for a
    response that is graded.
    """
    n_cached: int
    """Questions answered from the cache."""
    n_unparsable: int
    """Questions whose answer held no verdict, hence ties."""
    usage: Usage
    """Requests, tokens and cost of this run."""
    total: Usage
    """Tokens and cost of all answers, those from the cache included."""
    unproven: str
    """Why the judge's verdicts name no winner (a reward model that may be guessing); empty where
    they may.
    """


Votes = Mapping[bytes, Comparison]
"""People's votes by the content of the comparison (``prefloop.labeling.pool.content_of``)."""


class _Bootstrap(TypedDict):
    """Options of every interval."""

    seed: int
    resamples: int
    level: float


def judge_answers(
    sides: Mapping[str, Answers],
    judge: Judge | OwnJudge,
    cache: VerdictCache,
    *,
    pairs_per_prompt: int | None = None,
    anchor: str | None = None,
    people: Votes | None = None,
    apart: Collection[str] = (),
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Judged:
    """Duels of all models by ``judge``, with progress shown. A killed evaluation resumes; a
    repeated one asks nothing.

    All pairs of a prompt's responses are compared, or the first ``pairs_per_prompt`` of an order
    that uses every response before it repeats one. A judge that sees two responses is asked in both
    orders. A comparison whose request fails after all retries is counted and left out of the rates.
    The Elo of ``anchor`` is 1000; without one the mean is. Models that stand ``apart`` do not count
    towards a prompt's difficulty at equal length. ``people`` are votes on some of these
    comparisons. Raises ``DataError`` for prompts that not all models answer, ``JudgeError`` when
    the judge cannot be used.
    """
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise ConfigError(f"pairs_per_prompt must be 1 or more, found {pairs_per_prompt}")
    if len(sides) < 2:
        raise ConfigError("a comparison needs two models")
    require_same_prompts(sides)
    games = list(itertools.combinations(sides, 2))
    items = {game: _items(sides[game[0]], sides[game[1]], pairs_per_prompt) for game in games}
    judge = judge_of(judge)
    asked, tally = prepare(judge, cache)
    pairs = [pair for group in items.values() for _, pair in group]
    with progress(f"judge: {judge.name}", len(pairs), "pair") as advance:
        flat = asked.ask(pairs, progress_of(advance))
    verdicts = iter(flat)
    met = {game: [(i, pair, next(verdicts)) for i, pair in group] for game, group in items.items()}
    if all(verdict.failed for verdict in flat):
        raise JudgeError(
            f"judge {judge.name}: no pair has a verdict; the last failure: {flat[-1].failed}"
        )
    options = _Bootstrap(seed=seed, resamples=resamples, level=level)
    controlled = _length_controlled(met, list(sides)[-1], apart, options)
    return Judged(
        judge=judge.name,
        address=without_secrets(judge.address),
        duels=tuple(
            _duel(a, b, met[a, b], people or {}, controlled.get((a, b)), options) for a, b in games
        ),
        ranking=_ranking(met, anchor, options) if len(sides) > 2 else None,
        grades=mean_grades(sides, _graded(met), **options),
        verdicts=tuple(
            PairVerdict(prompt_id, a, b, None if verdict.failed else verdict.score)
            for (a, b), of in met.items()
            for prompt_id, _, verdict in of
        ),
        failures=tuple(dict.fromkeys(verdict.failed for verdict in flat if verdict.failed)),
        unproven=judge.unproven,
        n_asked=tally.n_asked,
        n_cached=tally.n_cached,
        n_unparsable=tally.n_unparsable,
        usage=judge.usage,
        total=tally.total,
    )


Met = list[tuple[str, Pair, Verdict]]
"""Prompt id, question and verdict of each comparison of a duel."""


def _items(side_a: Answers, side_b: Answers, limit: int | None) -> list[tuple[str, Pair]]:
    return [
        (prompt_id, (prompt.prompt, of_a[i], side_b[prompt_id][1][j]))
        for prompt_id, (prompt, of_a) in side_a.items()
        for i, j in _pairs(len(of_a), len(side_b[prompt_id][1]))[:limit]
    ]


def _pairs(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """All index pairs once, diagonal by diagonal, so that any start of the list spreads over both
    sides.
    """
    period = math.lcm(n_a, n_b)
    return [(k % n_a, (k + k // period) % n_b) for k in range(n_a * n_b)]


def _graded(met: Mapping[tuple[str, str], Met]) -> Iterator[tuple[str, Reply, Grade]]:
    for of in met.values():
        for prompt_id, (_, *replies), verdict in of:
            yield from (
                (prompt_id, reply, grade)
                for reply, grade in zip(replies, verdict.grades, strict=False)
            )


def _length_controlled(
    met: Mapping[tuple[str, str], Met],
    baseline: str,
    apart: Collection[str],
    options: _Bootstrap,
) -> dict[tuple[str, str], LengthControlled]:
    """By duel, win rates at equal length of two or more models against one baseline, on the prompts
    on which all of them have a verdict.

    Models that stand ``apart`` do not count towards a prompt's difficulty, and have no rate here.
    """
    scores, leads = {}, {}
    for (a, b), of in met.items():
        if b == baseline and a not in apart:
            scores[a], leads[a] = _scores_and_leads(of)
    common = set.intersection(*map(set, scores.values())) if len(scores) > 1 else set()
    if not common:
        return {}
    rates = length_controlled_leaderboard(
        {name: {i: of[i] for i in common} for name, of in scores.items()},
        {name: {i: of[i] for i in common} for name, of in leads.items()},
        **options,
    )
    return {(name, baseline): rate for name, rate in rates.items()}


def _scores_and_leads(met: Met) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By prompt, the verdicts and the lead of a's response in characters."""
    scores: dict[str, list[float]] = {}
    leads: dict[str, list[float]] = {}
    for prompt_id, (_, of_a, of_b), verdict in met:
        if not verdict.failed:
            scores.setdefault(prompt_id, []).append(verdict.score)
            leads.setdefault(prompt_id, []).append(float(len(text_of(of_a)) - len(text_of(of_b))))
    return scores, leads


def _duel(
    a: str,
    b: str,
    met: Met,
    people: Votes,
    controlled: LengthControlled | None,
    options: _Bootstrap,
) -> Duel:
    given = [(prompt_id, item, verdict) for prompt_id, item, verdict in met if not verdict.failed]
    if not given:
        raise JudgeError(
            f"{a} against {b}: no pair has a verdict; the last failure: {met[-1][2].failed}"
        )
    scores, leads = _scores_and_leads(met)
    orders: dict[str, list[tuple[float, float]]] = {}
    voted: dict[str, list[tuple[float, float]]] = {}
    for prompt_id, (prompt, of_a, of_b), verdict in given:
        if verdict.by_order and not verdict.unparsable:
            orders.setdefault(prompt_id, []).append((verdict.by_order[0], verdict.by_order[1]))
        pair = Comparison("", Conversation.of(prompt), [response_of(of_a), response_of(of_b)])
        if (human := people.get(content_of(pair))) and human.votes:
            voted.setdefault(prompt_id, []).append((_share(human, of_a), verdict.score))
    by_rates, no_rates = _corrected(rogan_gladen, scores, voted, options["level"])
    powered, no_power = _corrected(prediction_powered, scores, voted, options["level"])
    return Duel(
        a,
        b,
        win_rate=verdict_win_rate(scores, **options),
        sign_test=sign_test(scores),
        length_controlled=controlled or length_controlled_win_rate(scores, leads, **options),
        position=position_bias(orders, **options) if orders else None,
        rogan_gladen=by_rates,
        prediction_powered=powered,
        uncorrected=_uncorrected(people, voted, no_rates, no_power),
        n_comparisons=len(given),
        n_failed=len(met) - len(given),
        n_disagreed=sum(verdict.orders_agree is False for _, _, verdict in given),
        failed=tuple(dict.fromkeys(prompt_id for prompt_id, _, verdict in met if verdict.failed)),
    )


def _uncorrected(people: Votes, voted: Pairs, no_rates: str, no_power: str) -> tuple[str, ...]:
    """Each missing correction and its reason; empty without votes."""
    if not people:
        return ()
    if not voted:
        no_rates = no_power = (
            f"none of the {len(people)} pairs that people voted on is a pair of these very answers"
        )
    if no_rates == no_power:
        return (f"not corrected by people's votes: {no_rates}",) if no_rates else ()
    gladen = (
        "not corrected by Rogan-Gladen (the corrected figure shown is by prediction-powered"
        " inference)"
    )
    named = (gladen, no_rates), ("not corrected by prediction-powered inference", no_power)
    return tuple(f"{method}: {why}" for method, why in named if why)


def _corrected(
    correct: Callable[..., C], scores: Mapping[str, Sequence[float]], voted: Pairs, level: float
) -> tuple[C | None, str]:
    """The correction, or why these votes allow none."""
    try:
        return correct(scores, voted, level=level), ""
    except DataError as error:
        return None, str(error)


def _share(human: Comparison, of_a: Reply) -> float:
    """People's mean score of the response ``of_a``: 1 for each vote for it, 0.5 for each tie."""
    first = not differ(reply_of(human.responses[0]), of_a)
    scores = [
        0.5 if vote.choice == "tie" else float((vote.choice == 0) == first) for vote in human.votes
    ]
    return sum(scores) / len(scores)


def _ranking(
    met: Mapping[tuple[str, str], Met], anchor: str | None, options: _Bootstrap
) -> Ranking:
    games: Sequence[Game] = [
        Game(a, b, verdict.score, prompt_id)
        for (a, b), of in met.items()
        for prompt_id, _, verdict in of
        if not verdict.failed
    ]
    return rank(games, anchor=anchor, **options)
