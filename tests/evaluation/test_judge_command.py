"""``prefloop judge`` and ``prefloop judge calibrate`` as a user types them, with a real HTTP
endpoint as the judge.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from judge_endpoint import Scored, endpoint_fixture, prefers_longer, shown  # noqa: F401
from made_run import make_run

from prefloop.cli import _main, guarded
from prefloop.data.sources import write_jsonl
from prefloop.evaluation.calibrate import calibrate
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.judge import ScoreJudge
from prefloop.records import Comparison, Message, Prompt, Response, Vote


def answers(path: Path, text: str, prompts: int = 12) -> Path:
    rows = [
        {
            "id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "response": text.format(i=i),
        }
        for i in range(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    texts = {"short": "{i}", "middle": "answer {i}", "long": "a much longer answer {i}"}
    return [str(answers(tmp_path / f"{name}.jsonl", text)) for name, text in texts.items()]


def judge(tmp_path: Path, url: str, *rest: str) -> int:
    return guarded(
        _main,
        [
            "judge",
            "--judge",
            f"openai:tiny@{url}",
            "--cache",
            str(tmp_path / "cache.jsonl"),
            "--backoff",
            "0",
            *rest,
        ],
    )


def test_three_results_are_ranked_and_a_repeated_command_asks_nothing(
    endpoint, tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = endpoint(prefers_longer), tmp_path / "out.json"
    short, middle, long = three
    arguments = [
        "--a",
        long,
        "--b",
        short,
        "--also",
        middle,
        "--resamples",
        "200",
        "--output",
        str(out),
    ]
    assert judge(tmp_path, server.url, *arguments) == 0
    found = json.loads(out.read_text())
    assert [(duel["a"], duel["b"], duel["win_rate"]["rate"]) for duel in found["duels"]] == [
        (long, short, 1.0),
        (long, middle, 1.0),
        (short, middle, 0.0),
    ]
    assert [model["name"] for model in found["ranking"]["models"]] == [long, middle, short]
    assert found["duels"][0]["sign_test"]["p_value"] == pytest.approx(2 / 2**12)
    assert found["duels"][0]["position"]["first_share"]["mean"] == 0.5 and found["n_asked"] == 72
    first = capsys.readouterr().out
    table = [line for line in first.splitlines() if "[" in line and "judged" not in line]
    assert max(map(len, table)) <= 80 and all(
        line.count("[") in (1, 2) and "]" in line for line in table
    )
    assert "72 questions asked, 0 answered from the cache" in first
    assert judge(tmp_path, server.url, *arguments) == 0
    assert (
        "0 questions asked, 72 answered from the cache" in capsys.readouterr().out
        and len(server.bodies) == 72
    )
    assert json.loads(out.read_text())["duels"] == found["duels"]


def test_a_judge_that_always_takes_the_first_gives_one_half_and_is_told_so(
    endpoint, tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = endpoint(lambda number, body: "[[A]]")
    assert (
        judge(
            tmp_path,
            server.url,
            "--a",
            three[0],
            "--b",
            three[2],
            "--output",
            str(tmp_path / "o.json"),
        )
        == 0
    )
    duel = json.loads((tmp_path / "o.json").read_text())["duels"][0]
    assert (duel["win_rate"]["rate"], duel["win_rate"]["ties"], duel["n_disagreed"]) == (
        0.5,
        1.0,
        12,
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "the two orders disagreed in 100.0% of 12 comparisons" in said
    assert "100.0% of answers were for the response shown first" in said


def test_peoples_votes_on_some_answers_correct_the_win_rate(
    endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        answers(tmp_path / "a.jsonl", "a much longer answer {i}", 60),
        answers(tmp_path / "b.jsonl", "answer {i}", 60),
    )

    def votes(prompts: range) -> list[Comparison]:
        return [
            # people take the short one half of the time; the order in the file is not that of the
            # command
            Comparison(
                f"h{i}",
                [Message("user", f"Question {i}?")],
                [Response(f"answer {i}"), Response(f"a much longer answer {i}")],
                [Vote("ann", i % 2)],
            )
            for i in prompts
        ]

    write_jsonl(tmp_path / "people.jsonl", votes(range(30)))

    def mostly_the_longer(number: int, body: dict) -> str:
        a, b = shown(body)
        seventh = re.search(r"Question \d*7\?", body["messages"][1]["content"])
        return "[[A]]" if (len(a) > len(b)) != bool(seventh) else "[[B]]"

    server = endpoint(mostly_the_longer)
    out = tmp_path / "o.json"
    arguments = [
        "--a",
        str(a),
        "--b",
        str(b),
        "--human",
        str(tmp_path / "people.jsonl"),
        "--output",
        str(out),
    ]
    assert judge(tmp_path, server.url, *arguments) == 0
    duel = json.loads(out.read_text())["duels"][0]
    assert duel["win_rate"]["rate"] > 0.75 and duel["prediction_powered"]["n_human"] == 30
    assert (
        duel["prediction_powered"]["low"]
        < 0.5
        < duel["prediction_powered"]["high"]
        < duel["win_rate"]["high"]
    )
    assert "corrected: by people's votes" in " ".join(capsys.readouterr().out.split())
    against = [
        replace(row, votes=[Vote("ann", int(int(row.id[1:]) % 10 == 7))])
        for row in votes(range(30))
    ]
    write_jsonl(tmp_path / "people.jsonl", against)
    assert judge(tmp_path, server.url, *arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "not corrected by Rogan-Gladen (the corrected figure shown is by prediction-powered"
        " inference): on 30 prompts" in said
    )
    write_jsonl(
        tmp_path / "people.jsonl",
        [Comparison("x", [Message("user", "Q")], [Response("1"), Response("2")], [Vote("ann", 0)])],
    )
    assert judge(tmp_path, server.url, *arguments) == 0
    assert (
        "not corrected by people's votes: none of the 1 pairs that people voted on is a pair of"
        " these very answers" in " ".join(capsys.readouterr().out.split())
    )
    write_jsonl(tmp_path / "people.jsonl", votes(range(3)))
    assert judge(tmp_path, server.url, *arguments) == 0
    assert (
        "not corrected by people's votes: a correction needs human votes on at least 5 prompts,"
        " found 3" in " ".join(capsys.readouterr().out.split())
    )


def test_two_results_of_a_run_are_sampled_once_and_compared(
    endpoint, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs", "first", tiny_folder)
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [Prompt(f"p{i}", [Message("user", f"Say {i}.")]) for i in range(4)],
    )
    server = endpoint(prefers_longer)
    arguments = [
        "--a",
        f"{run}:ppo",
        "--b",
        f"{run}:sft",
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
    ]
    arguments += ["--samples", "2", "--pairs-per-prompt", "2", "--rollout", "transformers"]
    assert judge(tmp_path, server.url, *arguments) == 0
    asked = len(server.bodies)
    assert judge(tmp_path, server.url, *arguments) == 0
    assert len(server.bodies) == asked and "reused answer" in capsys.readouterr().out

    bad = tmp_path / "bad.jsonl"
    bad.write_text((tmp_path / "prompts.jsonl").read_text() + '{"id": "no prompt"}\n')
    arguments[5] = str(bad)
    assert judge(tmp_path, server.url, *arguments) == 2
    assert judge(tmp_path, server.url, *arguments, "--quarantine", str(tmp_path / "aside")) == 0
    assert '"no prompt"' in (tmp_path / "aside" / "bad.quarantine.jsonl").read_text()


def test_mistakes_are_told_before_anything_is_sampled_or_asked(
    endpoint, tmp_path: Path, tiny_folders, three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = endpoint(prefers_longer)
    one = make_run(tmp_path / "runs", "one", tiny_folders("llama"))
    other = make_run(tmp_path / "runs", "other", tiny_folders("qwen2"))
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, [Prompt("p", [Message("user", "Hi")])])
    for arguments, says in (
        (
            ["--a", f"{one}:ppo", "--b", f"{other}:ppo", "--prompts", str(prompts)],
            "belong to different backbones",
        ),
        (
            ["--a", f"{one}:pop", "--b", f"{one}:sft", "--prompts", str(prompts)],
            "did you mean 'ppo'",
        ),
        (["--a", f"{one}:ppo", "--b", f"{one}:sft"], "name a file of prompts with --prompts"),
        (["--a", three[0], "--b", three[0]], "is named twice"),
    ):
        assert judge(tmp_path, server.url, *arguments) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    assert guarded(_main, ["judge", "--judge", "gpt-9", "--a", three[0], "--b", three[1]]) == 2
    assert "unknown form. A judge is one of" in capsys.readouterr().err
    assert server.bodies == []


def test_calibration_tells_agreement_by_source_beside_the_longer_and_people(
    endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def item(source: str, i: int, votes: tuple[int, ...]) -> dict:
        human = ["ab"[v] for v in votes]
        label = human[0]
        return {
            "id": f"{source}-{i}",
            "source": source,
            "prompt": f"{source} question {i}",
            "response_a": f"short {i}",
            "response_b": f"a longer response {i}",
            "human": human,
            "label": label,
        }

    rows = [item("liked-long", i, (1, 1)) for i in range(10)] + [
        item("liked-short", i, (0,)) for i in range(10)
    ]
    human, out = tmp_path / "human.jsonl", tmp_path / "o.json"
    human.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = endpoint(prefers_longer)
    command = ["judge", "calibrate", "--judge", f"openai:tiny@{server.url}", "--human", str(human)]
    assert (
        guarded(_main, [*command, "--cache", str(tmp_path / "c.jsonl"), "--output", str(out)]) == 0
    )
    found = json.loads(out.read_text())
    alike = {s: of["judge"]["without_ties"]["mean"] for s, of in found["agreement"].items()}
    assert alike == {"all": 0.5, "liked-long": 1.0, "liked-short": 0.0}
    assert found["agreement"]["liked-long"]["people"]["without_ties"]["mean"] == 1.0
    assert found["agreement"]["liked-short"]["people"] is None
    assert found["agreement"]["all"]["longer"]["without_ties"]["mean"] == 0.5
    assert "liked-short" in capsys.readouterr().out and len(server.bodies) == 40

    human.write_text(
        human.read_text() + json.dumps({**rows[0], "response_b": rows[0]["response_a"]}) + "\n"
    )
    again = [
        *command,
        "--cache",
        str(tmp_path / "c.jsonl"),
        "--output",
        str(tmp_path / "again.json"),
    ]
    assert guarded(_main, again) == 2 and "`--quarantine FOLDER`" in capsys.readouterr().err
    assert guarded(_main, [*again, "--quarantine", str(tmp_path / "aside")]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["agreement"] == found["agreement"]
    assert '"row": 21' in (tmp_path / "aside" / "human.quarantine.jsonl").read_text()


def test_a_judge_that_takes_the_first_gains_nothing_from_files_whose_first_response_is_the_better_one() -> (  # noqa: E501
    None
):
    class TakesFirst:
        """Sees one order alone, as a judge that is asked once."""

        name, symmetric = "first", True

        def compare(self, prompt, a, b):
            raise NotImplementedError

        def compare_many(self, items, on_verdict=None):
            from prefloop.evaluation.judges.verdict import Verdict

            verdicts = [Verdict(1.0) for _ in items]
            for index, verdict in enumerate(verdicts):
                if on_verdict:
                    on_verdict(index, verdict)
            return verdicts

    rows = [
        Comparison(
            f"c{i}",
            [Message("user", f"q{i}")],
            [Response("good"), Response("bad one")],
            [Vote("ann", 0)],
        )
        for i in range(400)
    ]
    found = calibrate(rows, TakesFirst(), VerdictCache(), resamples=100)
    assert abs(found.agreement["all"].judge.with_ties.mean - 0.5) < 0.08


def test_comparisons_without_votes_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    pair = Comparison("x", [Message("user", "q")], [Response("aaa"), Response("b")])
    voted = Comparison(
        "y", [Message("user", "r")], [Response("aaa"), Response("b")], [Vote("ann", 0)]
    )
    found = calibrate([pair, voted], ScoreJudge(Scored()), VerdictCache(), resamples=50)
    assert (
        found.n_unvoted == 1
        and found.agreement["all"].judge.with_ties.mean == 1.0
        and found.position is None
    )
    from prefloop.errors import DataError

    with pytest.raises(DataError, match="none of 1 comparisons has a vote"):
        calibrate([pair], ScoreJudge(Scored()), VerdictCache())


def test_a_reference_answer_reaches_the_judge_and_a_limit_cuts_files_too(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "grader.py"
    source.write_text(
        "def right(prompt, response):\n    return float(response == prompt.meta['reference'])\n"
    )
    for name, text in (("right", "{i}"), ("wrong", "no")):
        rows = [
            {
                "id": f"p{i}",
                "prompt": [{"role": "user", "content": f"Question {i}?"}],
                "response": text.format(i=i),
                **({"meta": {"reference": str(i)}} if name == "wrong" else {}),
            }
            for i in range(20)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["judge", "--judge", f"{source}:right", "--a", str(tmp_path / "right.jsonl")]
    arguments += [
        "--b",
        str(tmp_path / "wrong.jsonl"),
        "--cache",
        str(tmp_path / "c.jsonl"),
        "--limit",
        "5",
    ]
    assert guarded(_main, [*arguments, "--output", str(tmp_path / "o.json")]) == 0
    duel = json.loads((tmp_path / "o.json").read_text())["duels"][0]
    assert duel["win_rate"]["rate"] == 1.0 and duel["n_comparisons"] == 5
    run = make_run(tmp_path / "runs", "first", tiny_folder)
    asked = [Prompt("p", [Message("user", "What is two and two, please?")], {"reference": "4"})]
    write_jsonl(tmp_path / "prompts.jsonl", asked)
    (run / "summary.json").write_text(
        json.dumps({"config": {"data": {"prompts": str(tmp_path / "prompts.jsonl")}}})
    )
    arguments = ["judge", "--judge", f"{source}:right", "--a", f"{run}:ppo", "--b", f"{run}:sft"]
    arguments += [
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--cache",
        str(tmp_path / "c.jsonl"),
    ]
    assert guarded(_main, [*arguments, "--rollout", "transformers"]) == 0
    assert "1 of 1 prompt" in " ".join(capsys.readouterr().out.split())


def test_training_prompts_end_where_the_runs_limit_ends(tmp_path: Path) -> None:
    from prefloop.artifacts.references import trained_on

    write_jsonl(
        tmp_path / "prompts.jsonl",
        [Prompt(f"p{i}", [Message("user", f"Question {i}?")]) for i in range(9)],
    )
    for limit, count in ((4, 4), (None, 9)):
        config = {"config": {"data": {"prompts": str(tmp_path / "prompts.jsonl"), "limit": limit}}}
        (tmp_path / "summary.json").write_text(json.dumps(config))
        assert [prompt.id for prompt in trained_on(tmp_path) or []] == [
            f"p{i}" for i in range(count)
        ]


def test_why_overlap_with_training_is_unknown_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefloop.artifacts.references import trained_on, untraced

    def told(file: str | None) -> str:
        (tmp_path / "summary.json").write_text(json.dumps({"config": {"data": {"prompts": file}}}))
        assert trained_on(tmp_path) is None
        return untraced(tmp_path)

    monkeypatch.chdir(tmp_path)
    assert told(None) == "its summary names no training files"
    assert told("data/train.jsonl").startswith(
        "its training file 'data/train.jsonl' is not found from here: run the"
    )
    assert (
        told(str(tmp_path / "train.jsonl")) == f"its training file '{tmp_path}/train.jsonl' is gone"
    )
    (tmp_path / "other.jsonl").write_text("no rows\n")
    assert told("other.jsonl") == "its training files have changed and cannot be read any more"
