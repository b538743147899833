"""The demo data is clean, its splits differ, and the gold scorer orders answers as a reader
would.
"""

from __future__ import annotations

import ast
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.sources import load_demonstrations, load_prompts
from prefloop.errors import JudgeError
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.judge import ScoreJudge
from prefloop.records import Message, Prompt

DEMO = Path(__file__).parents[2] / "examples" / "demo"
PROMPTS = [load_prompts(DEMO / name) for name in ("train.jsonl", "eval.jsonl")]
TRAIN, EVAL = (checked.records for checked in PROMPTS)
DEMONSTRATIONS = load_demonstrations(DEMO / "demonstrations.jsonl")
ANSWERS = {record.id: record.response for record in DEMONSTRATIONS.records}
GOLD = FunctionGrader(f"{DEMO / 'gold.py'}:score")

RICE = next(prompt for prompt in TRAIN if prompt.id == "cooking-1")
FULL = (
    "Wash the rice in cold water until it runs clear, which takes off the loose starch. Simmer it"
    " under a tight lid on low heat, let it rest for ten minutes, and fluff it with a fork."
)
PARTIAL = (
    "Wash the rice in cold water before you cook it. Then put it in a pot with twice as much water"
    " and cook it until it is soft and all of the water is gone."
)
OFF_TOPIC = (
    "The old harbor is the prettiest part of the city, and most visitors go there in the evening."
    " You can take the tram from the main square and walk back along the river."
)
REPEATED = "Wash the rice before you cook it. " * 5
KEYWORDS = (
    "rinse, wash, starch, clear, simmer, low heat, lid, cover, fork, fluff, stand, rest, rice, pot,"
    " water, cook"
)
TRUNCATED = FULL[: FULL.index("on low heat")]


def grade(text: str, prompt: Prompt = RICE) -> float:
    return GOLD.grade(prompt, text)


def mentions(text: str, *group: str) -> bool:
    """Whether the scorer sees the point: the text scores more with it than with one that nobody
    mentions.
    """
    seen, unseen = (
        Prompt(id="any", prompt=[Message("user", "Why?")], meta={"points": [points]})
        for points in ([*group], ["xqxqxq"])
    )
    return grade(text, seen) > grade(text, unseen)


def question(prompt: Prompt) -> str:
    return prompt.prompt[-1].content


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def truncated(text: str) -> str:
    kept = text.split()
    return " ".join(kept[: round(0.6 * len(kept))]).rstrip(".,")


def test_files_load_as_prefloop_records_without_findings() -> None:
    assert {checked.layout for checked in PROMPTS} == {DEMONSTRATIONS.layout} == {"prefloop"}
    assert not any(checked.findings or checked.skipped for checked in PROMPTS)
    assert not DEMONSTRATIONS.findings and not DEMONSTRATIONS.skipped


def test_there_is_enough_to_train_and_to_evaluate_on_and_the_license_states_the_counts() -> None:
    assert len(TRAIN) >= 240 and len(EVAL) >= 80
    text = " ".join((DEMO / "LICENSE.md").read_text(encoding="utf-8").split())
    topics = {prompt.meta["topic"] for prompt in TRAIN}
    assert f"`train.jsonl` holds {len(TRAIN)} and `eval.jsonl` {len(EVAL)} prompts" in text
    assert f"on {len(topics)} topics" in text
    lengths = [len(answer.split()) for answer in ANSWERS.values()]
    assert f"{min(lengths)} to {max(lengths)} words" in text


def test_ids_are_unique_over_both_splits() -> None:
    ids = [prompt.id for prompt in (*TRAIN, *EVAL)]
    assert len(set(ids)) == len(ids)


def test_every_training_prompt_has_one_demonstration_with_its_id_in_its_order() -> None:
    assert [(record.id, record.prompt) for record in DEMONSTRATIONS.records] == [
        (p.id, p.prompt) for p in TRAIN
    ]


def test_topics_are_mixed_and_every_one_is_evaluated() -> None:
    neighbors = [a.meta["topic"] == b.meta["topic"] for a, b in pairwise(TRAIN)]
    assert mean(neighbors) < 0.1
    assert {prompt.meta["topic"] for prompt in EVAL} == {prompt.meta["topic"] for prompt in TRAIN}


def test_no_evaluation_prompt_is_a_training_prompt() -> None:
    asked = {" ".join(words(question(prompt))) for prompt in TRAIN}
    assert not [prompt.id for prompt in EVAL if " ".join(words(question(prompt))) in asked]


def test_no_two_questions_are_nearly_the_same() -> None:
    tokens = [(prompt.id, set(words(question(prompt)))) for prompt in (*TRAIN, *EVAL)]
    close = [(a, b) for (a, x), (b, y) in combinations(tokens, 2) if len(x & y) / len(x | y) >= 0.8]
    assert not close


def test_points_are_groups_of_alternatives_that_can_match() -> None:
    for prompt in (*TRAIN, *EVAL):
        groups = prompt.meta["points"]
        assert len(groups) >= 4, prompt.id
        for group in groups:
            assert group and len(set(group)) == len(group), prompt.id
            assert all(re.fullmatch(r"[a-z0-9][a-z0-9 .,%'-]*\|?", text) for text in group), (
                prompt.id,
                group,
            )
            assert not any(len(text) < 4 and text.isdigit() for text in group), (prompt.id, group)


def test_the_question_itself_earns_no_points() -> None:
    for prompt in (*TRAIN, *EVAL):
        assert [
            group for group in prompt.meta["points"] if mentions(question(prompt), *group)
        ] == [], prompt.id


def test_demonstrations_score_high() -> None:
    scores = {prompt.id: grade(ANSWERS[prompt.id], prompt) for prompt in TRAIN}
    assert [id for id, score in scores.items() if score <= 0.8] == []
    assert mean(scores.values()) > 0.9


def test_an_answer_to_another_question_scores_clearly_lower() -> None:
    answers = list(ANSWERS.values())
    others = answers[1:] + answers[:1]
    own = [grade(ANSWERS[prompt.id], prompt) for prompt in TRAIN]
    wrong = [grade(text, prompt) for prompt, text in zip(TRAIN, others, strict=True)]
    assert mean(own) - mean(wrong) > 0.3
    assert mean(a > b for a, b in zip(own, wrong, strict=True)) > 0.98


def test_cutting_an_answer_mid_sentence_lowers_its_score() -> None:
    assert all(grade(truncated(ANSWERS[p.id]), p) < grade(ANSWERS[p.id], p) - 0.05 for p in TRAIN)


def test_saying_an_answer_twice_lowers_its_score() -> None:
    assert all(
        grade(f"{ANSWERS[p.id]} {ANSWERS[p.id]}", p) < 0.5 * grade(ANSWERS[p.id], p) for p in TRAIN
    )


def test_answers_are_ordered_as_a_reader_would_order_them() -> None:
    ordered = [FULL, PARTIAL, OFF_TOPIC, REPEATED, KEYWORDS, "Rinse it well.", ""]
    scores = [grade(text) for text in ordered]
    assert all(better > worse for better, worse in pairwise(scores)), scores
    assert scores[0] > 0.95 and scores[-1] == 0


def test_content_is_worth_more_than_stopping_or_length() -> None:
    assert grade(TRUNCATED) > grade(OFF_TOPIC)
    assert grade(FULL + " " + OFF_TOPIC) > grade(PARTIAL)


def test_every_further_point_pays() -> None:
    clauses = [
        "Rinse it first",
        "starch clings",
        "a gentle simmer is best",
        "cover it",
        "fluff it",
        "let it rest",
    ]
    pad = "and then you do this and that to it with what you have in there for now"
    scores = [grade(f"{' and '.join([*clauses[:n], pad])}.") for n in range(7)]
    assert all(after > before for before, after in pairwise(scores)), scores


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("opening", f"Sure! {FULL}"),
        ("announcement", f"Here is how you do it. {FULL}"),
        ("closing", f"{FULL} I hope this helps!"),
        ("repeated question", f"How do I cook rice so it isn't sticky? {FULL}"),
        ("heading", f"## Rice\n{FULL}"),
        ("bold", FULL.replace("rice", "**rice**")),
        ("list", "- " + FULL.replace(". ", ".\n- ").replace(", and", ".\n- And")),
        ("web address", f"{FULL[:-1]}, see https://example.com."),
        ("chat markup", f"{FULL}<|im_end|>"),
        ("speaker", f"{FULL}\nUser: Thanks."),
        ("line breaks", FULL.replace(" ", "\n", 4)),
    ],
)
def test_filler_and_debris_cost(name: str, worse: str) -> None:
    assert grade(worse) < 0.85 * grade(FULL), name


def test_plain_line_breaks_quotes_and_question_marks_cost_nothing() -> None:
    for ending in ('."', "!", "?", ".)", "?!"):
        assert grade(FULL[:-1] + ending) == grade(FULL), ending
    assert grade(FULL.replace(". ", ".\n\n")) == grade(FULL)


@pytest.mark.parametrize("ending", ["...", "\u2026", ", and", ". 2.", ":", " -"])
def test_unfinished_endings_cost(ending: str) -> None:
    assert grade(FULL[:-1] + ending) < grade(FULL) - 0.03


def test_length_pays_inside_the_window_only() -> None:
    free = Prompt(id="x", prompt=[Message("user", "zzzz?")], meta={"points": [["xqxqxq"]]})
    nouns = sorted({word for answer in ANSWERS.values() for word in words(answer) if len(word) > 6})
    scores = {
        n: grade(" ".join(f"the {noun}" for noun in nouns[: n // 2]), free)
        for n in (4, 12, 20, 40, 60, 76, 90)
    }
    assert scores[4] == scores[90] == 0
    assert 0 < scores[12] < scores[20] == scores[40] == scores[60] == pytest.approx(0.2)
    assert 0 < scores[76] < scores[60]


def test_bar_asks_for_the_whole_word_and_no_bar_for_its_start() -> None:
    text = "On Sunday the bubbles are gone."
    assert mentions(text, "bubbl") and mentions(text, "SUN")
    assert not mentions(text, "sun|") and not mentions(text, "day")
    assert all(
        mentions(f"It is the {word}.", "sun|") for word in ("sun", "Suns", "sun\u2019s", "sun-lit")
    )
    assert mentions("It is on low heating.", "low-heat") and not mentions(
        "It is on low heating.", "low heat|"
    )


def test_score_is_the_same_every_time_and_on_every_load() -> None:
    again = FunctionGrader(f"{DEMO / 'gold.py'}:score")
    assert {grade(text) for text in [PARTIAL] * 3} == {again.grade(RICE, PARTIAL)}


def test_score_judge_prefers_the_better_answer_to_a_known_prompt() -> None:
    judge = ScoreJudge(GOLD, prompts=TRAIN)
    assert judge.compare(RICE.prompt, PARTIAL, FULL).score == 0
    assert judge.compare(RICE.prompt, FULL, OFF_TOPIC).score == 1


def test_a_prompt_without_points_is_refused_with_its_id() -> None:
    with pytest.raises(JudgeError, match=r"'mine'.*points"):
        GOLD.grade(Prompt(id="mine", prompt=[Message("user", "Why?")]), "Because.")


def test_gold_needs_only_the_standard_library() -> None:
    tree = ast.parse((DEMO / "gold.py").read_text(encoding="utf-8"))
    named = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    named |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in named} <= sys.stdlib_module_names


PIECES = st.sampled_from(
    [
        FULL,
        KEYWORDS,
        "Sure! ",
        "...",
        "\n\n",
        "- ",
        "1. ",
        "rice ",
        ", ",
        "? ",
        "<|im_end|>",
        "\u2026",
        "'",
        "10%",
    ]
)


@settings(max_examples=200)
@given(
    st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)),
    st.sampled_from([*TRAIN[:5], RICE]),
)
def test_score_stays_between_0_and_1_for_any_text(text: str, prompt: Prompt) -> None:
    assert 0 <= grade(text, prompt) <= 1
