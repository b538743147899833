"""Answers to a domain's own questions against references: ROUGE, BLEU, F1, exact match, with
bootstrap errors over prompts.

Every adapter answers greedily, through the chat template. ROUGE is rouge_score's F-measure with
stemming, BLEU is sacrebleu's corpus BLEU, F1 and exact match are those of SQuAD (Rajpurkar et al.
2016, arXiv 1606.05250): lower case, without punctuation and articles. With several references a
prompt counts its best one, as far as the metric allows.

Shape letters: P prompts, R resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefloop.data.source import Source
from prefloop.data.sources import load_demonstrations
from prefloop.errors import DataError
from prefloop.evaluation.benchmarks.harness import Metric
from prefloop.records import Demonstration

RESAMPLES = 1000
METRICS = ("rougeL", "rouge1", "rouge2", "bleu", "f1", "exact_match")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(
    path: Source | Path, limit: int | None = None, quarantine: Path | None = None
) -> list[Demonstration]:
    """The prompts of a domain set with their references: rows of prompt and reference(s), or any
    file of demonstrations.

    Rows that cannot be read are an error, or go into the folder ``quarantine``.
    """
    bad_rows = "quarantine" if quarantine else "error"
    return load_demonstrations(
        path, limit=limit, bad_rows=bad_rows, quarantine_dir=quarantine
    ).records


def references(row: Demonstration) -> list[str]:
    """All accepted answers. Raises ``DataError`` when they are no texts."""
    given = row.meta.get("references", [row.response])
    if (
        not isinstance(given, list)
        or not all(isinstance(text, str) and text.strip() for text in given)
        or not given
    ):
        raise DataError(f"row '{row.id}': references is no list of texts")
    return given


def name_of(source: Source) -> str:
    """What the table calls the set."""
    return source.stem


def score(rows: Sequence[Demonstration], answers: Sequence[str], seed: int = 0) -> list[Metric]:
    """Every metric of one adapter's answers, times 1 (BLEU too, which sacrebleu gives times
    100).
    """
    accepted = [references(row) for row in rows]
    by_metric = per_prompt(accepted, answers)
    bleu_P = _BleuParts(accepted, answers)
    draws_RP = draw(len(rows), seed)
    found = []
    for name in METRICS:
        if (
            name == "bleu"
        ):  # no mean over prompts: differences are those of its resamples (Koehn 2004)
            value, resampled_R = (
                bleu_P.score(np.arange(len(rows))),
                np.array([bleu_P.score(d) for d in draws_RP]),
            )
            parts: dict[str, Any] = {"resampled": resampled_R.tolist()}
        else:
            value_P = np.array(by_metric[name])
            value, resampled_R = float(value_P.mean()), value_P[draws_RP].mean(1)
            parts = {
                "by_question": {row.id: float(v) for row, v in zip(rows, value_P, strict=True)}
            }
        error = float(resampled_R.std(ddof=1)) if len(rows) > 1 else None
        found.append(Metric(name, True, value, error, len(rows), **parts))
    return found


def draw(prompts: int, seed: int) -> NDArray[np.intp]:
    """Prompts drawn with replacement, [R, P]; the same ones for every adapter, so that differences
    are paired.
    """
    return np.random.default_rng(seed).integers(prompts, size=(RESAMPLES, prompts))


def per_prompt(accepted: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE, F1 and exact match of each answer against the best of its references."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=True)
    out: dict[str, list[float]] = {name: [] for name in (*kinds, "f1", "exact_match")}
    for texts, answer in zip(accepted, answers, strict=True):
        rouge = scorer.score_multi(list(texts), answer)
        for kind in kinds:
            out[kind].append(float(rouge[kind].fmeasure))
        out["f1"].append(max(f1(text, answer) for text in texts))
        out["exact_match"].append(
            float(any(normalized(text) == normalized(answer) for text in texts))
        )
    return out


def normalized(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(reference: str, answer: str) -> float:
    """Harmonic mean of precision and recall of words in normal form; two empty texts agree."""
    wanted, given = normalized(reference).split(), normalized(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given))


class _BleuParts:
    """What each prompt adds to corpus BLEU: n-gram counts and lengths, so that a resample costs a
    sum.
    """

    def __init__(self, accepted: Sequence[Sequence[str]], answers: Sequence[str]) -> None:
        from sacrebleu.metrics import BLEU

        self.bleu = BLEU()
        sentence = BLEU(effective_order=True)
        found: list[Any] = [
            sentence.sentence_score(a, list(texts))
            for a, texts in zip(answers, accepted, strict=True)
        ]
        self.correct_P4 = np.array([s.counts for s in found])
        self.total_P4 = np.array([s.totals for s in found])
        self.lengths_P2 = np.array([[s.sys_len, s.ref_len] for s in found])

    def score(self, picked: NDArray[np.intp]) -> float:
        """BLEU between 0 and 1 of the prompts at ``picked``."""
        sys_len, ref_len = self.lengths_P2[picked].sum(0).tolist()
        found = self.bleu.compute_bleu(
            correct=self.correct_P4[picked].sum(0).tolist(),
            total=self.total_P4[picked].sum(0).tolist(),
            sys_len=sys_len,
            ref_len=ref_len,
            smooth_method="exp",
        )
        return float(found.score) / 100
