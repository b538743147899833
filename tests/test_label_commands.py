"""The label commands as a user types them, against a real Argilla: mistakes are named with what to do."""

import json
from pathlib import Path

import pytest
from labelling import Annotator, Labelling, comparisons

from prefloop.cli import _main, guarded
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import LabelError
from prefloop.labels.argilla import Argilla
from prefloop.labels.connection import Connection
from prefloop.records import Thumb, Vote


@pytest.fixture(scope="module")
def ann(labelling: Labelling) -> Annotator:
    return labelling.user()


def label(*arguments: object) -> int:
    return guarded(_main, ["label", *map(str, arguments)])


def test_the_commands_push_and_pull_and_a_second_pull_changes_no_byte(
    labelling: Labelling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file, output = labelling.name(), tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    (tmp_path / "how.md").write_text("# Be fair")
    write_jsonl(file, comparisons(30))
    home = ("--dataset", dataset, "--home", labelling.home)
    assert label("push", file, *home, "--guidelines", tmp_path / "how.md", "--min-submitted", 2) == 0
    assert label("push", file, *home) == 0
    labelling.argilla.vote(dataset, labelling.name(), {f"pair/{i}": Vote("", i % 2) for i in range(20)})
    assert label("pull", *home, "--output", output) == 0
    first = output.read_bytes()
    assert label("pull", *home, "--output", output) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert output.read_bytes() == first and labelling.connection.api_key.encode() not in first
    assert [c.votes[0].choice for c in load_comparisons(output).records] == [i % 2 for i in range(20)]
    assert "30 records sent" in said and "0 records sent to" in said and "30 were there" in said
    assert "20 records with 20 votes (0 drafts and 0 discards left out)" in said and "0 of 30 records" in said
    assert labelling.connection.api_key not in said
    assert (
        labelling.argilla.rest.get(f"/datasets/{labelling.argilla.datasets.find(dataset).id}")["guidelines"]
        == "# Be fair"
    )


def test_up_finds_the_server_that_runs_and_users_are_added_to_it(
    labelling: Labelling, capsys: pytest.CaptureFixture[str]
) -> None:
    name = labelling.name()
    assert label("up", "--home", labelling.home, "--port", 1) == 0
    assert label("users", "add", name, "--home", labelling.home) == 0
    assert label("status", "--home", labelling.home) == 0
    said = capsys.readouterr().out
    account = json.loads((labelling.home / "credentials.json").read_text())["users"][name]
    assert f"already runs: {labelling.url}" in said and f"annotator {name} added" in said and '"answers": true' in said
    assert account["password"] not in said and account["api_key"] not in said
    assert label("users", "add", name, "--home", labelling.home) == 2
    assert "is not unique" in capsys.readouterr().err


def test_an_admin_of_the_workspace_can_push_and_pull(labelling: Labelling) -> None:
    dataset, admin = labelling.name(), labelling.user(role="admin")
    argilla = Argilla(Connection(labelling.url, admin.client.headers["X-Argilla-Api-Key"]))
    argilla.push(comparisons(1), dataset)
    name = labelling.name()
    labelling.argilla.vote(dataset, name, {"pair/0": Vote("", 1)})
    assert argilla.pull(dataset).records[0].votes[0].annotator == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "pairz"], "holds no dataset 'pairz'; did you mean 'pairs'?"),
        (["--dataset", "pairs", "--workspace", "defalut"], "no workspace 'defalut'"),
        (["--dataset", "pairs", "--api-key", "wrong-key-1234"], "does not know this API key"),
    ],
)
def test_mistakes_are_named_with_what_to_do(
    labelling: Labelling, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    labelling.argilla.push(comparisons(1), "pairs")
    assert label("pull", "--home", labelling.home, "--output", tmp_path / "x.jsonl", *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "wrong-key-1234" not in printed.err + printed.out
    assert not (tmp_path / "x.jsonl").exists()


def test_an_annotators_key_is_told_what_key_is_needed(labelling: Labelling, ann: Annotator, tmp_path: Path) -> None:
    dataset = labelling.name()
    labelling.argilla.push(comparisons(1), dataset)
    key = ann.client.headers["X-Argilla-Api-Key"]
    with pytest.raises(LabelError, match="use the key of an owner") as refused:
        Argilla(Connection(labelling.url, key)).pull(dataset)
    assert key not in str(refused.value)


def test_bad_rows_are_set_aside_when_asked_and_thumbs_are_asked_for_single_responses(
    labelling: Labelling, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, file, home = labelling.name(), tmp_path / "mixed.jsonl", ("--home", labelling.home)
    write_jsonl(file, comparisons(3))
    file.write_text(file.read_text() + '{"prompt": "p"\n')
    assert label("push", file, "--dataset", dataset, *home) == 2
    assert "row 4" in capsys.readouterr().err
    assert label("push", file, "--dataset", dataset, *home, "--bad-rows", "quarantine") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 records sent" in said and (tmp_path / "mixed.quarantine.jsonl").read_text().count("\n") == 1
    thumbs = labelling.name()
    assert label("push", file, "--dataset", thumbs, *home, "--bad-rows", "quarantine", "--kind", "ratings") == 0
    assert labelling.argilla.progress(thumbs).total == 6
    single, name = tmp_path / "single.jsonl", labelling.name()
    single.write_text('{"id": "r", "prompt": "p", "response": {"text": "a"}}\n')
    assert label("push", single, "--dataset", name, *home) == 0
    labelling.argilla.vote(name, labelling.name(), {"r": Thumb("", "up")})
    assert [rating.votes[0].value for rating in labelling.argilla.pull(name).records] == ["up"]
