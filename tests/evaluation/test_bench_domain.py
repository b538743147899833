"""ROUGE, BLEU, F1 and exact match of domain sets: worked examples, the libraries' own numbers,
errors of the bootstrap.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from prefloop.data.sources import detect_layout, load_demonstrations, load_prompts
from prefloop.errors import DataError
from prefloop.evaluation.benchmarks.domain import (
    f1,
    normalized,
    per_prompt,
    read,
    references,
    score,
)
from prefloop.records import Demonstration, Message


def rows(*accepted: list[str]) -> list[Demonstration]:
    return [
        Demonstration(str(i), [Message("user", "q")], texts[0], {"references": texts})
        for i, texts in enumerate(accepted)
    ]


def test_squad_normal_form_drops_case_punctuation_and_articles() -> None:
    assert normalized("The  Quick, brown fox's A-den!") == "quick brown foxs aden"
    assert f1("the quick fox", "a fox") == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert (
        f1("the", "an") == 1.0 and f1("the", "fox") == 0.0
    )  # empty against empty, empty against something


def test_the_best_reference_counts() -> None:
    found = per_prompt([["a river", "the town"]], ["Town."])
    assert (
        found["exact_match"] == [1.0]
        and found["f1"] == [1.0]
        and found["rouge1"][0] == pytest.approx(2 / 3)
    )


def test_rouge_l_of_a_worked_example() -> None:
    # Longest common subsequence of 5 words (police the gunman ... ) is 'police the gunman' against
    # 4 words each (Lin 2004, section 3.1).
    found = per_prompt([["police killed the gunman"]], ["police kill the gunman"])
    assert found["rougeL"] == [1.0]  # stemming makes killed and kill one word
    found = per_prompt([["police killed the gunman"]], ["the gunman police shot"])
    assert found["rougeL"] == [0.5] and found["rouge1"] == [0.75]


def test_bleu_is_sacrebleus_corpus_bleu() -> None:
    accepted = [
        ["the quick brown fox jumps over the dog", "a fox jumps"],
        ["tell me how the weather will be tomorrow in town"],
    ]
    answers = [
        "the quick brown fox jumps over a dog",
        "tell me how the weather is tomorrow in town",
    ]
    found = next(m for m in score(rows(*accepted), answers) if m.name == "bleu")
    streams = [[accepted[0][0], accepted[1][0]], [accepted[0][1], None]]
    assert found.value == pytest.approx(
        sacrebleu.corpus_bleu(answers, streams).score / 100, abs=1e-12
    )
    assert found.stderr is not None and found.stderr > 0 and len(found.resampled) == 1000


def test_the_bootstraps_error_is_that_of_a_mean() -> None:
    right = [i % 3 == 0 for i in range(60)]
    found = next(
        m
        for m in score(rows(*[["yes"]] * 60), ["yes" if r else "no" for r in right])
        if m.name == "exact_match"
    )
    assert found.value == pytest.approx(1 / 3) and found.n == 60
    assert found.stderr == pytest.approx(np.std(right) / 60**0.5, rel=0.1)
    assert sum(found.by_question.values()) == 20


def test_one_prompt_has_no_error() -> None:
    assert all(m.stderr is None for m in score(rows(["yes"]), ["no"]))


def test_rows_with_references_are_a_layout_that_check_knows(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    given = [
        {"prompt": "q1", "reference": "one"},
        {"prompt": "q2", "references": ["one", "two"], "topic": "x"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert detect_layout(file) == "references"
    assert [references(row) for row in read(file)] == [["one"], ["one", "two"]]
    assert [row.response for row in load_demonstrations(file).records] == ["one", "one"]
    assert load_prompts(file).records[1].meta["topic"] == "x"
    file.write_text(json.dumps({"prompt": "q", "references": ["one", 2]}) + "\n")
    with pytest.raises(DataError, match=r"references\.1"):
        read(file)


def test_prompts_beside_empty_references_stay_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "q", "reference": []}\n')
    assert detect_layout(file) == "prompt_only"


def test_demonstrations_are_their_own_references(tmp_path: Path) -> None:
    file = tmp_path / "demonstrations.jsonl"
    file.write_text(json.dumps({"prompt": "q", "response": "an answer"}) + "\n")
    assert [references(row) for row in read(file)] == [["an answer"]]
