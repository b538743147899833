"""The label commands as a user types them, against a real Argilla: mistakes are named with what to
do.
"""

import dataclasses
import json
from pathlib import Path

import pytest
from labeling_server import Annotator, Labeling, comparisons

from prefloop.cli import _main, guarded
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import DataError, LabelError
from prefloop.labeling.argilla.connection import Connection
from prefloop.labeling.argilla.forms import untakeable
from prefloop.labeling.argilla.records import Argilla
from prefloop.records import Comparison, Message, Response, Thumb, Vote


@pytest.fixture(scope="module")
def ann(labeling: Labeling) -> Annotator:
    return labeling.user()


def label(*arguments: object) -> int:
    return guarded(_main, ["label", *map(str, arguments)])


def test_the_commands_push_and_pull_and_a_second_pull_changes_no_byte(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file, output = labeling.name(), tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    (tmp_path / "how.md").write_text("# Be fair")
    write_jsonl(file, comparisons(30))
    home = ("--dataset", dataset, "--home", labeling.home)
    assert (
        label("push", file, *home, "--guidelines", tmp_path / "how.md", "--min-submitted", 2) == 0
    )
    assert label("push", file, *home) == 0
    labeling.argilla.vote(
        dataset, labeling.name(), {f"pair/{i}": Vote("", i % 2) for i in range(20)}
    )
    assert label("pull", *home, "--output", output) == 0
    first = output.read_bytes()
    assert label("pull", *home, "--output", output) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert output.read_bytes() == first and labeling.connection.api_key.encode() not in first
    assert [c.votes[0].choice for c in load_comparisons(output).records] == [
        i % 2 for i in range(20)
    ]
    assert "30 records sent" in said and "0 records sent to" in said and "30 were there" in said
    assert (
        "20 records with 20 votes (0 drafts and 0 discards left out; all of simulated annotators)"
        in said
    )
    assert "0 of 30 records" in said
    assert labeling.connection.api_key not in said
    assert (
        labeling.argilla.rest.get(f"/datasets/{labeling.argilla.datasets.find(dataset).id}")[
            "guidelines"
        ]
        == "# Be fair"
    )


def test_up_finds_the_server_that_runs_but_at_no_other_port(
    labeling: Labeling, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("up", "--home", labeling.home) == 0
    assert label("status", "--home", labeling.home) == 0
    said = capsys.readouterr().out
    assert f"already runs: {labeling.url}" in said and '"answers": true' in said
    assert label("up", "--home", labeling.home, "--port", 1) == 2
    assert (
        f"you asked for port 1: `prefloop label down --home {labeling.home}` first"
        in capsys.readouterr().err
    )


def test_users_are_added_shown_and_removed(
    labeling: Labeling, capsys: pytest.CaptureFixture[str]
) -> None:
    name, home = labeling.name(), ("--home", labeling.home)
    assert (
        label("users", "add", name, *home)
        == label("users", "add", name, *home, "--role", "annotator")
        == 0
    )
    said = capsys.readouterr().out
    account = json.loads((labeling.home / "credentials.json").read_text())["users"][name]
    assert f"annotator {name} added" in said and f"annotator {name} was there" in said
    assert f"`prefloop label users password {name} --home {labeling.home}`" in said
    assert account["password"] not in said and account["api_key"] not in said
    assert label("users", "password", name, *home) == 0
    assert capsys.readouterr().out == f"{account['password']}\n"
    assert label("users", "password", name, *home, "--new") == 0
    assert capsys.readouterr().out.strip() != account["password"]
    other = labeling.name()
    assert label("users", "add", name, *home, "--workspace", other) == 2
    assert label("users", "add", name, *home, "--workspace", other, "--new-workspace") == 0
    capsys.readouterr()
    assert label("users", "list", *home) == 0
    assert f"{name} annotator default, {other} 0" in " ".join(capsys.readouterr().out.split())
    assert label("users", "remove", name, *home) == 0
    assert label("users", "remove", name, *home) == 2


def test_users_of_a_server_that_is_down_are_told_the_whole_command_that_starts_it(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("users", "list", "--home", tmp_path / "h") == 2
    assert f"start it with `prefloop label up --home {tmp_path / 'h'}`" in capsys.readouterr().err


def test_new_guidelines_are_said_and_a_refused_push_changes_none(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file, how = labeling.name(), tmp_path / "pairs.jsonl", tmp_path / "how.md"

    def push(records: list[Comparison], guidelines: str) -> tuple[int, str]:
        write_jsonl(file, records)
        how.write_text(guidelines)
        status = label(
            "push", file, "--home", labeling.home, "--dataset", dataset, "--guidelines", how
        )
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    def told() -> str:
        return str(labeling.argilla.datasets.find(dataset).guidelines)

    pairs = comparisons(2)
    assert "replaced" not in push(pairs, "first")[1] and told() == "first"
    assert "replaced" not in push(pairs, "first")[1]
    changed = [pairs[0], dataclasses.replace(pairs[1], responses=pairs[1].responses[::-1])]
    status, said = push(changed, "second")
    assert status == 2 and "Nothing was sent or changed" in said and told() == "first"
    status, said = push(pairs, "third")
    assert (
        status == 0
        and "0 records sent" in said
        and "guidelines replaced" in said
        and told() == "third"
    )


def test_every_record_that_argilla_does_not_take_is_named_before_a_dataset_is_made(
    labeling: Labeling,
) -> None:
    records, dataset = comparisons(4), labeling.name()
    for at, text in ((1, "x" * 20_001), (2, ""), (3, "<" * 5_001)):
        records[at] = dataclasses.replace(records[at], prompt=[Message("user", text)])
    with pytest.raises(DataError) as refused:
        labeling.argilla.push(records, dataset)
    said = str(refused.value)
    assert (
        "does not take 3 of 4 records" in said
        and "--bad-rows quarantine" in said
        and "xx" not in said
    )
    assert (
        "'pair/1': message 1 of the prompt has 20,001 characters, Argilla takes 1 to 20,000" in said
    )
    assert "'pair/2': message 1 of the prompt has 0 characters" in said
    assert (
        "'pair/3': message 1 of the prompt has 20,004 characters (&, < and > are sent as 4 or 5)"
        in said
    )
    with pytest.raises(LabelError, match="holds no dataset"):
        labeling.argilla.datasets.find(dataset)


def test_the_limit_is_of_messages_not_of_responses_and_is_argillas_own(
    labeling: Labeling,
) -> None:
    """What is let through is taken, to the character."""
    longest = [Message("user", "<" * 5_000)] + [Message("user", "y")] * 499
    record = Comparison("long", longest, [Response("z" * 100_000), Response("")])
    assert untakeable([record]) == []
    assert labeling.argilla.push([record], labeling.name()).sent == 1
    more = dataclasses.replace(record, prompt=[*longest, Message("user", "y")])
    assert untakeable([more]) == [(more, "the prompt has 501 messages, Argilla takes 500 at most")]


def test_votes_of_programs_are_left_out_where_people_have_voted(
    labeling: Labeling, ann: Annotator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output, robot = labeling.name(), tmp_path / "labels.jsonl", labeling.name()
    command = ("pull", "--home", labeling.home, "--dataset", dataset, "--output", output)
    labeling.argilla.push(comparisons(3), dataset)
    labeling.argilla.vote(dataset, robot, {f"pair/{i}": Vote("", 0) for i in range(3)})

    def voters(*flags: str) -> tuple[dict[str, list[str]], str]:
        assert label(*command, *flags) == 0
        votes = {
            c.id: [vote.annotator for vote in c.votes] for c in load_comparisons(output).records
        }
        return votes, capsys.readouterr().out

    votes, said = voters()
    assert votes == {f"pair/{i}": [robot] for i in range(3)}
    assert (
        "3 records with 3 votes (0 drafts and 0 discards left out; all of simulated annotators)"
        in said
    )
    (record,) = [
        r
        for r in ann.queue(labeling.argilla.datasets.find(dataset).id)
        if r["external_id"] == "pair/1"
    ]
    assert ann.answer(record["id"], preferred="A").status_code == 201
    votes, said = voters()
    assert votes == {"pair/1": [ann.name]}
    assert (
        "1 record with 1 vote (" in said
        and "3 votes of simulated annotators left out, as people have voted" in said
    )
    votes, said = voters("--simulated")
    assert votes == {"pair/0": [robot], "pair/1": [robot, ann.name], "pair/2": [robot]}
    assert "4 votes (0 drafts and 0 discards left out; 3 of simulated annotators)" in said
    admin = Argilla(
        Connection(labeling.url, labeling.user(role="admin").client.headers["X-Argilla-Api-Key"])
    )
    assert admin.simulated(dataset) >= {robot} and admin.pull(dataset).set_aside == 3


def test_a_pull_without_answers_leaves_the_older_file(
    labeling: Labeling, ann: Annotator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, output = labeling.name(), tmp_path / "labels.jsonl"
    command = ("pull", "--home", labeling.home, "--dataset", dataset, "--output", output)
    labeling.argilla.push(comparisons(1), dataset)
    (record,) = ann.queue(labeling.argilla.datasets.find(dataset).id)
    ann.answer(record["id"], "draft", preferred="A")
    assert label(*command) == 2 and not output.exists()
    assert (
        "nobody has answered yet" in (said := capsys.readouterr().err)
        and "1 draft and 0 discards" in said
    )
    output.write_text("votes of last week\n")
    assert label(*command) == 2 and output.read_text() == "votes of last week\n"
    assert f"{output} is left as it is" in capsys.readouterr().err


def test_strength_is_written_as_the_whole_number_that_it_is(
    labeling: Labeling, tmp_path: Path
) -> None:
    dataset, output = labeling.name(), tmp_path / "labels.jsonl"
    labeling.argilla.push(comparisons(1), dataset)
    labeling.argilla.vote(dataset, labeling.name(), {"pair/0": Vote("", 0, 2)})
    assert label("pull", "--home", labeling.home, "--dataset", dataset, "--output", output) == 0
    assert '"strength": 2,' in output.read_text()


@pytest.mark.parametrize("name", ["", " ", "x" * 201])
def test_a_name_that_no_dataset_can_have_is_told_in_plain_words(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", comparisons(1))
    assert label("push", tmp_path / "pairs.jsonl", "--home", labeling.home, "--dataset", name) == 2
    said = capsys.readouterr().err
    assert "it takes 1 to 200 characters" in said and "{" not in said


def test_a_refusal_says_field_and_reason_without_the_value(labeling: Labeling) -> None:
    with pytest.raises(LabelError) as refused:
        labeling.argilla.rest.post("/workspaces", {"name": ""})
    assert "name: String should have at least 1 character" in str(refused.value) and "{" not in str(
        refused.value
    )


def test_an_admin_of_the_workspace_can_push_and_pull(labeling: Labeling) -> None:
    dataset, admin = labeling.name(), labeling.user(role="admin")
    argilla = Argilla(Connection(labeling.url, admin.client.headers["X-Argilla-Api-Key"]))
    argilla.push(comparisons(1), dataset)
    name = labeling.name()
    labeling.argilla.vote(dataset, name, {"pair/0": Vote("", 1)})
    assert argilla.pull(dataset).records[0].votes[0].annotator == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "pairz"], "holds no dataset 'pairz'; did you mean 'pairs'?"),
        (
            ["--dataset", "pairs", "--workspace", "defalut"],
            "did you mean 'default'? `prefloop label users add NAME",
        ),
        (["--dataset", "pairs", "--api-key", "wrong-key-1234"], "does not know this API key"),
    ],
)
def test_mistakes_are_named_with_what_to_do(
    labeling: Labeling,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    labeling.argilla.push(comparisons(1), "pairs")
    assert label("pull", "--home", labeling.home, "--output", tmp_path / "x.jsonl", *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "wrong-key-1234" not in printed.err + printed.out
    assert not (tmp_path / "x.jsonl").exists()


def test_an_annotators_key_is_told_what_key_is_needed(
    labeling: Labeling, ann: Annotator, tmp_path: Path
) -> None:
    dataset = labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    key = ann.client.headers["X-Argilla-Api-Key"]
    with pytest.raises(LabelError, match="use the key of an owner") as refused:
        Argilla(Connection(labeling.url, key)).pull(dataset)
    assert key not in str(refused.value)


def test_bad_rows_are_set_aside_when_asked_and_thumbs_are_asked_for_single_responses(
    labeling: Labeling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file, home = labeling.name(), tmp_path / "mixed.jsonl", ("--home", labeling.home)
    write_jsonl(file, comparisons(3))
    file.write_text(file.read_text() + '{"prompt": "p"\n')
    assert label("push", file, "--dataset", dataset, *home) == 2
    assert "row 4" in capsys.readouterr().err
    assert label("push", file, "--dataset", dataset, *home, "--bad-rows", "quarantine") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "3 records sent" in said
        and (tmp_path / "mixed.quarantine.jsonl").read_text().count("\n") == 1
    )
    thumbs = labeling.name()
    assert (
        label(
            "push",
            file,
            "--dataset",
            thumbs,
            *home,
            "--bad-rows",
            "quarantine",
            "--kind",
            "ratings",
        )
        == 0
    )
    assert labeling.argilla.progress(thumbs).total == 6
    single, name = tmp_path / "single.jsonl", labeling.name()
    single.write_text('{"id": "r", "prompt": "p", "response": {"text": "a"}}\n')
    assert label("push", single, "--dataset", name, *home) == 0
    labeling.argilla.vote(name, labeling.name(), {"r": Thumb("", "up")})
    assert [rating.votes[0].value for rating in labeling.argilla.pull(name).records] == ["up"]
    long = Comparison("long", [Message("user", "x" * 20_001)], [Response("a"), Response("b")])
    write_jsonl(file, [*comparisons(2), long])
    assert label("push", file, "--dataset", labeling.name(), *home, "--bad-rows", "quarantine") == 0
    assert "2 records sent" in " ".join(capsys.readouterr().out.split())
    assert [c.id for c in load_comparisons(tmp_path / "mixed.refused.jsonl").records] == ["long"]


def test_the_account_of_a_simulated_annotator_is_listed_as_such_and_given_to_nobody(
    labeling: Labeling, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, robot = labeling.name(), labeling.name()
    labeling.argilla.push(comparisons(1), dataset)
    labeling.argilla.vote(dataset, robot, {"pair/0": Vote("", 0)})
    assert label("users", "list", "--home", labeling.home) == 0
    assert f"{robot} annotator, simulated default 1" in " ".join(capsys.readouterr().out.split())
    assert label("users", "add", robot, "--home", labeling.home) == 2
    assert "account of a simulated annotator" in capsys.readouterr().err
