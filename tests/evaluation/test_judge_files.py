"""Two files of responses judged against each other."""

import json

import pytest
from judge_endpoint import (  # noqa: F401
    Scored,
    Scripted,
    endpoint_fixture,
    judge_at,
    judge_files,
    prefers_longer,
    shown,
)

from prefloop.data.sources import load_prompts
from prefloop.errors import DataError, JudgeError
from prefloop.evaluation.answers import read_answers
from prefloop.evaluation.judges.judge import ScoreJudge


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(prompt_id, response):
    return {
        "id": prompt_id,
        "prompt": [{"role": "user", "content": f"Q {prompt_id}"}],
        "response": response,
    }


def test_a_position_biased_judge_gives_only_ties_and_a_disagreement_rate_of_one(endpoint, tmp_path):
    server = endpoint(lambda number, body: "The first is better. [[A]]")
    rows = [_row(f"p{i}", f"answer {i}") for i in range(6)]
    result = judge_files(
        _write(tmp_path / "a.jsonl", rows),
        _write(tmp_path / "b.jsonl", [{**row, "response": "other"} for row in rows]),
        judge_at(server.url),
        tmp_path / "cache.jsonl",
    )
    assert (result.win_rate.rate, result.win_rate.ties) == (0.5, 1.0)
    assert (result.n_comparisons, result.n_disagreed, result.disagreement) == (6, 6, 1.0)
    assert result.n_asked == len(server.bodies) == 12


def test_a_repeated_evaluation_asks_nothing_and_says_the_same(endpoint, tmp_path):
    server = endpoint(prefers_longer)
    a = _write(
        tmp_path / "a.jsonl",
        [_row(f"p{i}", text) for i in range(5) for text in ("long enough", f"short {i}")],
    )
    b = _write(tmp_path / "b.jsonl", [_row(f"p{i}", "mid size") for i in range(5)])
    first = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    asked = len(server.bodies)
    again = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    mirrored = judge_files(b, a, judge_at(server.url), tmp_path / "cache.jsonl")
    assert (first.win_rate.rate, first.win_rate.n_prompts, first.win_rate.n_pairs) == (0.5, 5, 10)
    assert len(server.bodies) == asked == first.n_asked == 20
    assert (again.n_asked, again.n_cached) == (0, 20)
    assert again.win_rate == first.win_rate
    assert mirrored.n_asked == 0
    assert (first.disagreement, first.n_unparsable) == (0.0, 0)


def test_unparsable_answers_are_counted_in_the_result_from_the_cache_too(endpoint, tmp_path):
    server = endpoint(lambda n, body: "no idea" if "riddle" in shown(body)[0] else "[[C]]")
    rows = [_row(f"p{i}", f"answer {i}") for i in range(10)]
    a = _write(tmp_path / "a.jsonl", [*rows, _row("x", "a riddle")])
    b = _write(
        tmp_path / "b.jsonl", [{**row, "response": "other"} for row in [*rows, _row("x", "")]]
    )
    for asked in (22, 0):
        result = judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
        assert (result.n_unparsable, result.n_asked, result.win_rate.ties) == (1, asked, 1.0)


def test_a_short_evaluation_whose_answers_hold_no_verdict_has_no_result(endpoint, tmp_path):
    server = endpoint(lambda n, body: "no idea")
    rows = [_row(f"p{i}", f"answer {i}") for i in range(9)]
    a = _write(tmp_path / "a.jsonl", rows)
    b = _write(tmp_path / "b.jsonl", [{**row, "response": "other"} for row in rows])
    for _ in range(2):
        with pytest.raises(JudgeError, match="18 of 18 answers held no verdict"):
            judge_files(a, b, judge_at(server.url), tmp_path / "cache.jsonl")
    assert len(server.bodies) == 36, "each question twice, and none again"


def test_a_score_is_not_asked_in_both_orders(tmp_path):
    a, b = (
        _write(tmp_path / "a.jsonl", [_row("x", "aaa")]),
        _write(tmp_path / "b.jsonl", [_row("x", "b")]),
    )
    result = judge_files(a, b, ScoreJudge(Scored()), tmp_path / "cache.jsonl")
    assert (result.win_rate.rate, result.n_asked, result.n_disagreed) == (1.0, 2, 0)


def test_pairs_per_prompt_uses_every_response_before_it_repeats_one(tmp_path):
    judge = ScoreJudge(Scored(lambda prompt, response: 0))
    a = _write(tmp_path / "a.jsonl", [_row("x", f"a{i}") for i in range(4)])
    b = _write(tmp_path / "b.jsonl", [_row("x", f"b{i}") for i in range(2)])
    judge_files(a, b, judge, tmp_path / "some.jsonl", pairs_per_prompt=4)
    assert set(judge.grader.seen) == {"a0", "a1", "a2", "a3", "b0", "b1"}
    judge.grader.seen.clear()
    every = judge_files(a, b, judge, tmp_path / "all.jsonl")
    assert (every.n_comparisons, every.n_asked, len(judge.grader.seen)) == (8, 6, 6), (
        "each response is graded once"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "row 2: is not one line of JSON"),
        (
            '{"id": "y", "prompt": [{"role": "user", "content": "q"}]}',
            "row 2: holds a prompt, expected a prompt with one response",
        ),
        ("[1]", "row 2: is a list, expected an object"),
        ('{"id": "y", "prompt": 5, "response": "r"}', "row 2, field 'prompt': "),
        (
            '{"id": "y", "prompt": [{"role": "boss", "content": ""}], "response": "r"}',
            r"row 2, field 'prompt.0.role': ",
        ),
        ('{"id": true, "prompt": "q", "response": "r"}', "row 2, field 'id': is true"),
        (
            '{"id": "y", "prompt": "q", "response": 3}',
            "row 2, field 'response': is a number, expected text",
        ),
        (
            '{"id": "x", "prompt": "q", "response": "r"}',
            "row 2, field 'id': 'x' stands for another prompt in row 1",
        ),
        ('{"id": "x", "prompt": "", "response": "r"}', "row 2, field 'prompt': is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path, line, message):
    good = _write(tmp_path / "good.jsonl", [_row("x", "1")])
    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text() + line + "\n")
    with pytest.raises(DataError, match=rf"(?s)bad.jsonl: 1 of 2 rows cannot be used.*{message}"):
        judge_files(good, bad, Scripted(lambda a, b: 1.0), tmp_path / "cache.jsonl")


def test_files_that_answer_different_prompts_are_refused_before_anything_is_asked(tmp_path):
    judge = Scripted(lambda a, b: 1.0)
    one = _write(tmp_path / "one.jsonl", [_row("x", "1"), _row("y", "1")])
    fewer = _write(tmp_path / "fewer.jsonl", [_row("x", "1")])
    reworded = _write(tmp_path / "reworded.jsonl", [_row("x", "1"), {**_row("z", "1"), "id": "y"}])
    empty = _write(tmp_path / "empty.jsonl", [])
    for a, b, message in [
        (one, fewer, "'y' is in a but not in b"),
        (fewer, one, "'y' is in b but not in a"),
        (one, reworded, "'y' is worded differently"),
        (one, empty, "empty.jsonl is empty: it holds no rows"),
        (one, tmp_path / "absent.jsonl", "no such file: .*absent.jsonl"),
    ]:
        with pytest.raises(DataError, match=message):
            judge_files(a, b, judge, tmp_path / "cache.jsonl")
    assert judge.n == 0


def test_answers_of_mt_bench_find_their_questions_by_number(tmp_path, capsys):
    questions = [
        {"question_id": n, "category": "c", "turns": [f"Question {n}?", "And more?"]}
        for n in (81, 82)
    ]
    path = tmp_path / "answers.jsonl"
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))

    def answers(*rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_answers(
            path, questions=lambda: load_prompts(tmp_path / "questions.jsonl").records
        )

    row = {
        "question_id": 82,
        "answer_id": "a",
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["One.", "Two."]}],
    }
    ((prompt, replies),) = answers(row).values()
    assert [turn.content for turn in prompt.prompt] == ["Question 82?"] and replies == ["One."]
    assert "second turns of 1 answer are not used" in capsys.readouterr().out
    for wrong, said in (
        ({"question_id": 7}, "among no questions"),
        ({"choices": [{}]}, "field 'choices'"),
    ):
        with pytest.raises(DataError, match=f"row 2.*{said}"):
            answers(row, row | wrong)
    with pytest.raises(DataError, match="--prompts QUESTIONS"):
        read_answers(path)
