"""A judge against people on comparisons that both have seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.base.console import progress
from prefloop.base.redact import without_secrets
from prefloop.data.replies import reply_of
from prefloop.errors import DataError, JudgeError
from prefloop.evaluation.judges.assessor import Judge, OwnJudge, judge_of
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.judge import prepare
from prefloop.evaluation.judges.tally import progress_of
from prefloop.evaluation.judges.usage import Usage
from prefloop.records import Comparison, Vote, prompt_key
from prefloop.stats.judge_agreement import HumanAgreement, HumanItem, human_agreement
from prefloop.stats.position_bias import PositionBias, position_bias


@dataclass(frozen=True)
class Calibration:
    """How far a judge agrees with people, overall (``"all"``) and per source."""

    judge: str
    address: str
    """Of the endpoint; empty for a judge on this machine."""
    agreement: dict[str, HumanAgreement]
    position: PositionBias | None
    """How exchanging the responses changed its verdicts; ``None`` for a judge that sees one
    response at a time.
    """
    n_unvoted: int
    """Comparisons left out because nobody voted on them."""
    n_failed: int
    """Comparisons without a verdict because a request failed after all retries; the same command
    asks them again.
    """
    n_unparsable: int
    """Questions whose answer held no verdict, hence ties."""
    usage: Usage
    """Requests, tokens and cost of this run."""
    total: Usage
    """Tokens and cost of all answers, those from the cache included."""


def calibrate(
    comparisons: Sequence[Comparison],
    judge: Judge | OwnJudge,
    cache: VerdictCache,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Calibration:
    """Ask the judge about every comparison with votes. The comparison's id decides which response
    it sees as a.

    Raises ``DataError`` when no comparison has a vote, ``JudgeError`` when the judge cannot be
    used.
    """
    voted = [c for c in comparisons if c.votes]
    if not voted:
        raise DataError(
            f"none of {len(comparisons)} comparisons has a vote: give a file that people have"
            " labeled"
        )
    # In published files the better response is often the first: a judge that prefers a place must
    # not gain by that.
    shown = [c.swap() if _odd(c.id) else c for c in voted]
    judge = judge_of(judge)
    asked, tally = prepare(judge, cache)
    with progress(f"judge: {judge.name}", len(shown), "comparison") as advance:
        verdicts = asked.ask(
            [(c.prompt, reply_of(c.responses[0]), reply_of(c.responses[1])) for c in shown],
            progress_of(advance),
        )
    given = [(c, v) for c, v in zip(shown, verdicts, strict=True) if not v.failed]
    if not given:
        raise JudgeError(
            f"judge {judge.name}: no comparison has a verdict; the last failure:"
            f" {verdicts[-1].failed}"
        )
    items = [
        HumanItem(
            prompt_key(c.prompt),
            tuple(_score(vote) for vote in c.votes),
            v.score,
            float(len(c.responses[0].text) - len(c.responses[1].text)),
            str(c.meta.get("source", "")),
        )
        for c, v in given
    ]
    orders: dict[str, list[tuple[float, float]]] = {}
    for c, v in given:
        if v.by_order and not v.unparsable:
            orders.setdefault(prompt_key(c.prompt), []).append((v.by_order[0], v.by_order[1]))
    return Calibration(
        judge.name,
        without_secrets(judge.address),
        human_agreement(items, seed=seed, resamples=resamples),
        position_bias(orders, seed=seed, resamples=resamples) if orders else None,
        len(comparisons) - len(voted),
        len(verdicts) - len(given),
        tally.n_unparsable,
        judge.usage,
        tally.total,
    )


def _odd(id: str) -> bool:
    return bool(hashlib.sha256(id.encode()).digest()[0] & 1)


def _score(vote: Vote) -> float:
    return 0.5 if vote.choice == "tie" else float(vote.choice == 0)
