"""Accounts as whoever runs the server types them: added once, let in elsewhere, listed, given
passwords, removed.
"""

import sqlite3
from collections.abc import Callable

import httpx
import pytest
from prefloop_labeling import __main__ as command_line
from prefloop_labeling.users import SIMULATED

from .conftest import Server, client_of


@pytest.fixture
def users(server: Server, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        status = command_line.main(["users", *arguments, "--home", str(server.home.path)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def signs_in(server: Server, username: str, password: str) -> bool:
    form = {"username": username, "password": password}
    return httpx.post(f"{server.url}/api/v1/token", data=form, trust_env=False).status_code == 201


def workspaces_of(server: Server, username: str) -> list[str]:
    client = client_of(server.url, server.home.credentials()["users"][username]["api_key"])
    return sorted(found["name"] for found in client.get("/me/workspaces").json()["items"])


def test_an_added_annotator_signs_in_with_the_password_that_is_shown_on_demand(
    server: Server, users
) -> None:
    status, said = users("add", "carla")
    password = server.home.credentials()["users"]["carla"]["password"]
    assert (
        status == 0
        and "annotator carla added to workspace 'default'" in said
        and password not in said
    )
    assert f"users password carla --home {server.home.path}`" in said
    assert users("password", "carla") == (0, f"{password}\n")
    assert signs_in(server, "carla", password)


def test_adding_again_changes_nothing_and_another_workspace_is_joined(
    server: Server, users
) -> None:
    users("add", "dora", "--role", "admin")
    before = server.home.credentials()
    assert users("add", "dora") == (
        0,
        "admin dora was there, with workspace 'default': nothing to do\n",
    )
    status, said = users("add", "dora", "--workspace", "other")
    assert (
        status == 2 and "no workspace 'other'; known: default" in said and "--new-workspace" in said
    )
    status, said = users("add", "dora", "--workspace", "other", "--new-workspace")
    assert (status, said) == (
        0,
        "workspace 'other' made\nadmin dora was there, and is let into workspace 'other'\n",
    )
    assert users("add", "dora", "--workspace", "other")[1].endswith("nothing to do\n")
    assert (
        workspaces_of(server, "dora") == ["default", "other"]
        and server.home.credentials() == before
    )
    status, said = users("add", "dora", "--role", "annotator")
    assert status == 2 and "is there as admin, not annotator" in said


def test_a_mistyped_workspace_makes_neither_workspace_nor_account(server: Server, users) -> None:
    status, said = users("add", "emil", "--workspace", "defalt")
    assert status == 2 and "did you mean 'default'? To make it" in said
    assert "emil" not in users("list")[1] and "defalt" not in users("list")[1]


@pytest.mark.parametrize("name", ["", " ", " ann", "a\nb"])
def test_what_is_no_name_is_refused_in_plain_words(users, name: str) -> None:
    status, said = users("add", name)
    assert status == 2 and "is no name" in said and "{" not in said


def test_the_list_shows_role_workspaces_answers_and_who_is_simulated(server: Server, users) -> None:
    ben = server.user()
    dataset = server.dataset()
    first, second, _ = dataset.log(
        *({"fields": {"prompt": "p"}, "external_id": f"{i}"} for i in range(3))
    )
    assert (
        ben.respond(first, choice="a").status_code
        == ben.respond(second, "discarded").status_code
        == 201
    )
    body = {
        "first_name": "s",
        "last_name": SIMULATED,
        "role": "annotator",
        "password": "long-enough",
    }
    assert server.owner.post("/users", json={**body, "username": "robot"}).status_code == 201
    rows = {line.split()[0]: line.split()[1:] for line in users("list")[1].splitlines()}
    assert rows["name"] == ["role", "workspaces", "answers"]
    assert rows["owner"] == ["owner", "all", "0"] and rows[ben.username] == [
        "annotator",
        "default",
        "2",
    ]
    assert rows["robot"] == ["annotator,", "simulated", "-", "0"]
    status, said = users("add", "robot")
    assert status == 2 and "account of a simulated annotator" in said


def test_a_new_password_replaces_the_old_one(server: Server, users) -> None:
    users("add", "fay")
    old = users("password", "fay")[1].strip()
    new = users("password", "fay", "--new")[1].strip()
    assert old != new and users("password", "fay")[1].strip() == new
    assert signs_in(server, "fay", new) and not signs_in(server, "fay", old)
    status, said = users("password", "fey")
    assert status == 2 and "did you mean 'fay'?" in said
    assert users("password", "fey", "--new")[0] == 2
    assert users("password", "owner")[1].strip() == server.home.credentials()["owner"]["password"]


def test_an_account_is_removed_and_its_answers_only_when_that_is_said(
    server: Server, users
) -> None:
    ann, dataset = server.user(), server.dataset()
    (record,) = dataset.log({"fields": {"prompt": "p"}})
    ann.respond(record, choice="a")
    status, said = users("remove", ann.username)
    assert status == 2 and "has given 1 answer, which" in said and "--with-answers" in said
    assert ann.client.get("/me").status_code == 200
    assert users("remove", ann.username, "--with-answers") == (
        0,
        f"annotator {ann.username} removed, with 1 answer\n",
    )
    assert (
        ann.client.get("/me").status_code == 401
        and ann.username not in server.home.credentials()["users"]
    )
    with sqlite3.connect(server.home.path / "argilla.db") as database:
        assert database.execute(
            "SELECT count(*) FROM responses WHERE user_id = ?", [ann.id.replace("-", "")]
        ).fetchone() == (0,)
    users("add", "gil")
    assert users("remove", "gil") == (0, "annotator gil removed\n")
    status, said = users("remove", "gil")
    assert status == 2 and "there is no account 'gil'" in said
    status, said = users("remove", "owner")
    assert status == 2 and "stays" in said
