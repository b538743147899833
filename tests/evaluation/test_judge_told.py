"""What ``prefloop judge`` says beside its table: where the judge is, what is kept, what failed,
grades, and warnings.
"""

import json
import re
import socket
from pathlib import Path

import pytest
from judge_endpoint import asked, endpoint_fixture, files, prefers_longer, shown  # noqa: F401

import prefloop.base.console
from prefloop.cli import _main, guarded
from prefloop.data.sources import write_jsonl
from prefloop.evaluation.judges.modes import Grading, Pairwise, Rubric
from prefloop.evaluation.judges.rubric import Criterion
from prefloop.records import Comparison, Message, Response, Vote


@pytest.fixture
def judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command on two files of answers: exit code, what it said, and its JSON."""
    a, b = files(tmp_path)

    def run(judge: str, *arguments: str) -> tuple[int, str, dict]:
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        command = [
            "judge",
            "--judge",
            judge,
            "--a",
            str(a),
            "--b",
            str(b),
            "--cache",
            str(tmp_path / "cache.jsonl"),
        ]
        rc = guarded(
            _main,
            [*command, "--backoff", "0", "--max-retries", "0", "--output", str(out), *arguments],
        )
        said = capsys.readouterr()
        return (
            rc,
            " ".join((said.out + said.err).split()),
            json.loads(out.read_text()) if out.exists() else {},
        )

    return run


def test_the_same_model_name_at_another_address_is_another_judge(endpoint, judged) -> None:
    one, other = endpoint(prefers_longer), endpoint(lambda n, body: "[[C]]")
    rc, said, found = judged(f"openai:toy@{one.url}")
    assert (
        rc == 0
        and f"judged by openai:toy at {one.url}" in said
        and found["duels"][0]["win_rate"]["rate"] == 1.0
    )
    rc, said, found = judged(f"openai:toy@{other.url}/")
    assert (
        rc == 0
        and f"judged by openai:toy at {other.url}" in said
        and found["duels"][0]["win_rate"]["ties"] == 1.0
    )
    assert len(other.bodies) == 12 and found["address"] == other.url
    assert judged(f"openai:toy@{one.url}")[2]["n_cached"] == 12


def test_unreadable_answers_from_the_cache_are_said_to_be_and_asked_again_with_another(
    endpoint, judged, tmp_path: Path
) -> None:
    server = endpoint(lambda n, body: "no idea")
    rc, said, _ = judged(f"openai:toy@{server.url}")
    assert (
        rc == 2 and "12 of 12 answers held no verdict" in said and "from an earlier run" not in said
    )
    rc, said, _ = judged(f"openai:toy@{server.url}")
    assert (
        rc == 2
        and f"12 of the 12 are from an earlier run, stored in {tmp_path}/cache.jsonl" in said
    )
    assert "to ask them again, delete that file or name another --cache" in said
    server.script = prefers_longer
    rc, _, found = judged(f"openai:toy@{server.url}", "--cache", str(tmp_path / "fresh.jsonl"))
    assert rc == 0 and found["n_asked"] == 12


def test_a_reply_that_can_be_read_is_shown_beside_those_that_cannot(endpoint, judged) -> None:
    server = endpoint(lambda n, body: json.dumps({"winner": "A"}))
    rc, said, _ = judged(f"openai:toy@{server.url}")
    assert (
        rc == 2
        and 'One that can be read: {"reasons": "…", "verdict": "A"} with A, B or tie' in said
    )
    for form in (Pairwise(), Grading(), Rubric((Criterion("clear"), Criterion("kind")))):
        example, _, text = form.valid.partition(", or a text that ends in ")
        structured = form.parse(example.removesuffix(" with A, B or tie"))
        assert structured is not None and structured == form.parse(
            f"I think so. {text.partition(',')[0].partition(' or')[0]}"
        )


def test_a_server_that_is_away_is_said_at_once_and_what_failed_is_not_done(
    judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    monkeypatch.setattr(prefloop.base.console, "PLAIN_EVERY_S", 0)
    rc, said, _ = judged(f"openai:toy@{address}", "--max-retries", "2")
    assert rc == 2 and said.count("asking again, 2 more times") == 1, "once, at the first failure"
    assert said.index("asking again") < said.index("judge: openai:toy 0/6")
    assert re.search(r"judge: openai:toy 0/6 .*\d failed", said) and "toy 1/6" not in said


def test_a_pair_that_failed_is_named_by_its_prompt(endpoint, judged) -> None:
    broken = endpoint(
        lambda n, b: (400, {}, "bad") if "answer 3" in asked(b) else prefers_longer(n, b)
    )
    rc, said, found = judged(f"openai:toy@{broken.url}")
    assert (
        rc == 0
        and "1 comparison of 1.jsonl against 2.jsonl failed and is left out: prompt p3" in said
    )
    assert "extra_body" not in said and "--max-tokens" in said
    assert {v["id"]: v["score"] for v in found["verdicts"]} == {
        f"p{i}": None if i == 3 else 1.0 for i in range(6)
    }


def test_a_judge_that_follows_the_place_is_warned_of_and_a_sound_one_is_not(
    endpoint, judged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "This judge says little about these answers"
    always_a, sound = endpoint(lambda n, body: "[[A]]"), endpoint(prefers_longer)
    rc, said, _ = judged(f"openai:toy@{always_a.url}")
    assert (
        rc == 0 and f"{warning}: it gave another answer when the responses changed places" in said
    )
    rc, said, _ = judged(f"openai:toy@{sound.url}")
    assert rc == 0 and warning not in said and "0 unparsable answers" in said
    voted = [
        Comparison(
            f"c{i}", [Message("user", f"q{i}")], [Response("aa"), Response("b")], [Vote("p", 0)]
        )
        for i in range(6)
    ]
    write_jsonl(tmp_path / "people.jsonl", voted)
    command = [
        "judge",
        "calibrate",
        "--judge",
        f"openai:toy@{always_a.url}",
        "--human",
        str(tmp_path / "people.jsonl"),
    ]
    assert guarded(_main, [*command, "--cache", str(tmp_path / "c.jsonl")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        warning in said
        and "n: comparisons" in said
        and f"openai:toy at {always_a.url} and people" in said
    )


def test_a_judge_that_mostly_takes_the_second_is_warned_of_too(
    endpoint, judged, tmp_path: Path
) -> None:
    """Of ten pairs it follows the answers in two: its orders disagree in 80 %, and no answer says
    so by itself.
    """
    a, b = files(tmp_path, [(None, f"a long answer {i}", f"b {i}") for i in range(10)])

    def second(number: int, body: dict) -> str:
        return prefers_longer(number, body) if re.search(r"answer [01]", asked(body)) else "[[B]]"

    rc, said, found = judged(f"openai:toy@{endpoint(second).url}", "--a", str(a), "--b", str(b))
    assert rc == 0 and found["duels"][0]["n_disagreed"] == 8
    assert "it mostly takes the response shown second, far beyond chance" in said


def test_grades_and_rubrics_tell_the_mean_of_each_result_and_criterion(endpoint, judged) -> None:
    def grade(number: int, body: dict) -> str:
        return "[[8]]" if "a long" in asked(body) else "[[3]]"

    rc, said, found = judged(f"openai:toy@{endpoint(grade).url}", "--mode", "grade")
    assert rc == 0 and "1.jsonl: mean grade 8 [" in said and "2.jsonl: mean grade 3 [" in said
    assert [(Path(g["name"]).name, g["grade"]["mean"], g["n_graded"]) for g in found["grades"]] == [
        ("1.jsonl", 8.0, 6),
        ("2.jsonl", 3.0, 6),
    ]

    def scores(number: int, body: dict) -> str:
        return (
            "[[right: 9]]\n[[short: 3]]"
            if "a long" in asked(body)
            else "[[right: 5]]\n[[short: 9]]"
        )

    rubric = ["--mode", "rubric", "--rubric", "{right: 2, short: 1}"]
    rc, said, found = judged(f"openai:toy@{endpoint(scores).url}", *rubric)
    assert rc == 0 and re.search(
        r"1\.jsonl: mean grade 7 \[[^]]*\]: right 9 \[[^]]*\], short 3 \[", said
    )
    second = found["grades"][1]
    assert (
        second["grade"]["mean"] == pytest.approx(19 / 3) and second["parts"]["short"]["mean"] == 9.0
    )


def test_a_function_has_mean_grades_and_nothing_to_parse(judged, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def length(prompt, response):\n    return len(response)\n")
    rc, said, found = judged(f"{tmp_path}/f.py:length")
    assert rc == 0 and "1.jsonl: mean grade 15 [" in said and "unparsable" not in said
    assert "12 questions asked, 0 answered from the cache" in said
    assert found["grades"][0]["grade"]["mean"] == len("a long answer 0")


def test_progress_is_shown_while_a_model_judges(
    endpoint, judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.base.console.PLAIN_EVERY_S", 0.0)
    url = endpoint(prefers_longer).url
    assert "judge: openai:toy 6/6" in judged(f"openai:toy@{url}")[1]
    grading = endpoint(lambda n, body: "[[8]]" if "a long" in asked(body) else "[[3]]").url
    assert "judge: openai:toy 6/6" in judged(f"openai:toy@{grading}", "--mode", "grade")[1]
