"""Files of answers as people have them, ``--prompts`` and people's votes beside them."""

import json
from pathlib import Path

import pytest

from prefloop.cli import _main, guarded
from prefloop.data.sources import write_jsonl
from prefloop.errors import DataError
from prefloop.evaluation.answers import read_answers
from prefloop.records import Comparison, Message, Response, Vote


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command with whoever is longer as the judge: exit code, what it said, and its
    JSON.
    """
    (tmp_path / "longer.py").write_text("def longer(prompt, response):\n    return len(response)\n")

    def run(*arguments: object) -> tuple[int, str, dict]:
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        command = [
            "judge",
            "--judge",
            f"{tmp_path}/longer.py:longer",
            "--cache",
            str(tmp_path / "cache.jsonl"),
        ]
        rc = guarded(_main, [*command, "--output", str(out), *map(str, arguments)])
        said = capsys.readouterr()
        return (
            rc,
            " ".join((said.out + said.err).split()),
            json.loads(out.read_text()) if out.exists() else {},
        )

    return run


def test_a_prompt_may_be_a_text_and_an_id_a_number_or_missing(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    a = read_answers(
        write(
            tmp_path / "a.jsonl",
            {"prompt": "Hi", "response": "1"},
            {"prompt": turns, "response": "2"},
        )
    )
    b = read_answers(write(tmp_path / "b.jsonl", {"id": None, "prompt": turns, "response": "3"}))
    assert a.keys() == b.keys()
    ((prompt, responses),) = a.values()
    assert prompt.prompt == [Message("user", "Hi")] and responses == ["1", "2"]
    assert [
        *read_answers(write(tmp_path / "c.jsonl", {"id": 7, "prompt": "Hi", "response": "1"}))
    ] == ["7"]


def test_empty_responses_are_counted(tmp_path: Path, judged) -> None:
    a = write(
        tmp_path / "a.jsonl", {"prompt": "Hi", "response": "yes"}, {"prompt": "Ho", "response": " "}
    )
    b = write(
        tmp_path / "b.jsonl", {"prompt": "Hi", "response": ""}, {"prompt": "Ho", "response": ""}
    )
    rc, said, _ = judged("--a", a, "--b", b)
    assert rc == 0 and f"empty responses, judged as they are: 1 of {a}, 2 of {b}" in said
    full = write(
        tmp_path / "full.jsonl",
        {"prompt": "Hi", "response": "a"},
        {"prompt": "Ho", "response": "b"},
    )
    other = write(
        tmp_path / "other.jsonl",
        {"prompt": "Hi", "response": "aa"},
        {"prompt": "Ho", "response": "bb"},
    )
    assert "empty responses" not in judged("--a", full, "--b", other)[1]


def test_prompts_cut_files_of_answers_by_what_they_say(tmp_path: Path, judged) -> None:
    sides = [
        write(
            tmp_path / f"{n}.jsonl",
            *({"id": f"p{i}", "prompt": f"Q{i}", "response": n * (i + 1)} for i in range(5)),
        )
        for n in ("x", "yy")
    ]
    some = write(
        tmp_path / "some.jsonl", *({"id": f"other-{i}", "prompt": f"Q{i}"} for i in (3, 1))
    )
    rc, said, found = judged("--a", sides[0], "--b", sides[1], "--prompts", some)
    assert (
        rc == 0
        and {verdict["id"] for verdict in found["verdicts"]} == {"p1", "p3"}
        and "only" not in said
    )
    more = write(tmp_path / "more.jsonl", {"prompt": "Q3"}, {"prompt": "Q9"})
    rc, said, found = judged("--a", sides[0], "--b", sides[1], "--prompts", more)
    assert rc == 0 and found["duels"][0]["win_rate"]["n_prompts"] == 1
    assert f"only 1 of the 2 prompts of {more} are answered in every file" in said
    none = write(tmp_path / "none.jsonl", {"prompt": "Q9"})
    rc, said, found = judged("--a", sides[0], "--b", sides[1], "--prompts", none)
    assert rc == 2 and "answers none of the 1 prompts of --prompts" in said and not found


def test_votes_on_a_pair_may_stand_in_several_rows_in_either_order(tmp_path: Path) -> None:
    from prefloop.commands.judge import JudgeCommand

    texts = [Response("yes"), Response("no")]
    rows = [
        Comparison(f"r{i}", [Message("user", "q")], texts, [Vote(f"v{i}", 0)]) for i in range(3)
    ]
    rows.append(Comparison("r3", [Message("user", "q")], texts[::-1], [Vote("v3", 0)]))
    write_jsonl(tmp_path / "people.jsonl", rows)
    (pair,) = (
        JudgeCommand("f.py:f", a="a", b="b", human=tmp_path / "people.jsonl")._people() or {}
    ).values()
    assert [vote.choice for vote in pair.votes] == [0, 0, 0, 1] and pair.responses == texts


def test_answers_are_read_in_every_layout_that_check_reads(tmp_path: Path, judged) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    layouts = {
        "plain.jsonl": [{"prompt": "Hi", "response": "Hello"}],
        "alpaca.jsonl": [
            {"instruction": "Hi", "output": "Hello", "generator": "m", "datasplit": "eval"}
        ],
        "messages.jsonl": [{"messages": turns}],
        "completion.jsonl": [{"prompt": [turns[0]], "completion": [turns[1]]}],
        "thumbs.jsonl": [{"prompt": "Hi", "completion": "Hello", "label": False}],
    }
    found = {name: read_answers(write(tmp_path / name, *rows)) for name, rows in layouts.items()}
    (tmp_path / "a.csv").write_text("prompt,completion\nHi,Hello\n")
    (tmp_path / "a.json").write_text(json.dumps(layouts["alpaca.jsonl"], indent=1))
    found |= {name: read_answers(tmp_path / name) for name in ("a.csv", "a.json")}
    for name, answers in found.items():
        assert answers == found["plain.jsonl"], name
    shorter = write(tmp_path / "shorter.jsonl", {"instruction": "Hi", "output": "Yo"})
    rc, _, result = judged("--a", tmp_path / "a.json", "--b", shorter)
    assert rc == 0 and result["duels"][0]["win_rate"]["rate"] == 1.0


def test_a_blank_answer_is_an_answer_in_every_layout_and_a_blank_prompt_is_not(
    tmp_path: Path,
) -> None:
    user = {"role": "user", "content": "Hi"}
    for row in (
        {"prompt": "Hi", "response": " "},
        {"instruction": "Hi", "output": " "},
        {"messages": [user, {"role": "assistant", "content": " "}]},
        {"prompt": "Hi", "completion": " ", "label": True},
    ):
        ((_, responses),) = read_answers(write(tmp_path / "a.jsonl", row)).values()
        assert responses == [" "], row
    for row in (
        {"instruction": " ", "output": "x"},
        {"messages": [{**user, "content": ""}, {"role": "assistant", "content": "x"}]},
    ):
        with pytest.raises(
            DataError, match=r"1 of 1 row cannot be used(.|\n)*(is empty|only whitespace)"
        ):
            read_answers(write(tmp_path / "a.jsonl", row))


def test_bad_rows_of_answers_are_set_aside_where_the_command_is_asked_to(
    tmp_path: Path, judged
) -> None:
    good = [{"prompt": f"Q{i}", "response": "yes"} for i in range(3)]
    a = write(tmp_path / "a.jsonl", *good, {"prompt": "Q3", "response": 5})
    b = write(tmp_path / "b.jsonl", *({**row, "response": "no"} for row in good))
    rc, said, _ = judged("--a", a, "--b", b)
    assert rc == 2 and "row 4, field 'response'" in said and "--quarantine FOLDER" in said
    rc, said, found = judged("--a", a, "--b", b, "--quarantine", tmp_path / "bad")
    assert (
        rc == 0
        and "1 row quarantined in a.quarantine.jsonl" in said
        and found["duels"][0]["win_rate"]["n_prompts"] == 3
    )
    assert json.loads((tmp_path / "bad/a.quarantine.jsonl").read_text())["row"] == 4


def test_pairs_are_no_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a comparison, expected a prompt with one response"):
        read_answers(write(tmp_path / "a.jsonl", {"prompt": "Hi", "chosen": "a", "rejected": "b"}))
