"""Accounts: added, listed, removed, given passwords, through the running server's own API with the
owner's key.

Names, passwords and API keys of those that are made here stand in the home's credentials.json.
"""

import contextlib
import difflib
import http.client
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop_labeling import proof
from prefloop_labeling.home import Home, LabelingError
from prefloop_labeling.server import status

ROLES = ("annotator", "admin", "owner")
SIMULATED = "(simulated by prefloop)"  # last name of the accounts that programs vote with


@dataclass(frozen=True)
class Added:
    """What `add_user` found and did."""

    account: dict[
        str, Any
    ]  # {username, role, password, api_key}; the password is None when it is not kept in the home
    made: bool
    joined: bool  # let into the workspace by this call
    workspace_made: bool


@dataclass(frozen=True)
class User:
    """An account as the server has it."""

    username: str
    role: str
    simulated: bool
    workspaces: list[str]
    answers: int  # drafts and discards too

    @property
    def said_answers(self) -> str:
        return f"{self.answers:,} answer{'s' * (self.answers != 1)}"


def add_user(
    home: Path | str,
    username: str,
    role: str | None = None,
    workspace: str = "default",
    new_workspace: bool = False,
) -> Added:
    """Make a user (an annotator unless `role` says else) with a random password, or take the one
    that is there, and let it into a workspace.

    Repeatable. A missing workspace is made with `new_workspace` alone. Raises LabelingError when no
    server runs, when the account is there with another role, or is a simulated annotator's.
    """
    if role not in (None, *ROLES):
        raise LabelingError(f"role {role!r} is unknown: use one of {', '.join(ROLES)}")
    if username != username.strip() or not username.isprintable() or not username:
        raise LabelingError(
            f"{username!r} is no name: give one that can be read, without blanks around it"
        )
    place, api = _reach(home)
    user = next((user for user in _users(api) if user["username"] == username), None)
    if user is not None:
        _check_there(user, role)
    workspaces = {
        found["name"]: found["id"] for found in api.call("GET", "/me/workspaces")["items"]
    }
    missing = workspace not in workspaces
    if missing and not (new_workspace and workspace.strip()):
        raise LabelingError(
            f"there is no workspace '{workspace}'; {_nearest(workspace, workspaces)} To make it,"
            " add --new-workspace"
        )
    if missing:
        workspaces[workspace] = api.call("POST", "/workspaces", {"name": workspace})["id"]
    made = user is None
    if user is None:
        user = _make(place, api, username, role or "annotator")
    joined = workspace not in {
        found["name"] for found in api.call("GET", f"/users/{user['id']}/workspaces")["items"]
    }
    if joined:
        api.call("POST", f"/workspaces/{workspaces[workspace]}/users", {"user_id": user["id"]})
    kept = place.credentials().get("users", {}).get(username)
    account = kept or {
        "username": username,
        "role": user["role"],
        "password": None,
        "api_key": user["api_key"],
    }
    return Added(account, made, joined, missing)


def list_users(home: Path | str) -> list[User]:
    """All accounts by name."""
    _, api = _reach(home)
    return sorted(_all(api), key=lambda user: user.username)


def remove_user(home: Path | str, username: str, with_answers: bool = False) -> User:
    """Delete an account; returns what it was. Argilla deletes its answers too, so one that has some
    goes `with_answers` alone.

    Raises LabelingError for the home's owner and for a name that nobody has.
    """
    place, api = _reach(home)
    if username == place.credentials()["owner"]["username"]:
        raise LabelingError(f"'{username}' owns the server of {place.path} and stays")
    ids = {user["username"]: user["id"] for user in _users(api)}
    if username not in ids:
        raise LabelingError(f"there is no account '{username}'; {_nearest(username, ids)}")
    found = next(user for user in _all(api) if user.username == username)
    if found.answers and not with_answers:
        raise LabelingError(
            f"'{username}' has given {found.said_answers}, which Argilla would delete with the"
            " account: pull them first, then say --with-answers"
        )
    api.call("DELETE", f"/users/{ids[username]}")
    with place.locked():
        credentials = place.credentials()
        credentials.get("users", {}).pop(username, None)
        place.write_credentials(credentials)
    return found


def password_of(home: Path | str, username: str, new: bool = False) -> str:
    """The password that the home keeps for an account; `new` makes one first, after which the old
    one is no good.

    Raises LabelingError when none is kept: the account was not made here.
    """
    place = Home(Path(home))
    if new:
        place, api = _reach(home)
        users = {user["username"]: user for user in _users(api)}
        if username not in users:
            raise LabelingError(f"there is no account '{username}'; {_nearest(username, users)}")
        password = secrets.token_urlsafe(18)
        api.call("PATCH", f"/users/{users[username]['id']}", {"password": password})
        _keep(place, users[username], password)
        return password
    credentials = place.credentials()
    kept = {
        account["username"]: account
        for account in (*credentials.get("users", {}).values(), credentials["owner"])
    }
    if username not in kept:
        raise LabelingError(
            f"no password of '{username}' is kept in {place.credentials_file};"
            f" {_nearest(username, kept)} An account that was made elsewhere gets one with --new"
        )
    return str(kept[username]["password"])


def _check_there(user: dict[str, Any], role: str | None) -> None:
    if user["last_name"] == SIMULATED:
        raise LabelingError(
            f"'{user['username']}' is the account of a simulated annotator: give the person another"
            " name"
        )
    if role not in (None, user["role"]):
        raise LabelingError(
            f"'{user['username']}' is there as {user['role']}, not {role}: add the {role} under"
            " another name, or leave --role out"
        )


def _make(place: Home, api: "_Api", username: str, role: str) -> dict[str, Any]:
    password = secrets.token_urlsafe(18)
    body = {"first_name": username, "username": username, "role": role, "password": password}
    user = api.call("POST", "/users", body)
    _keep(place, user, password)
    return user


def _keep(place: Home, user: dict[str, Any], password: str) -> None:
    name = user["username"]
    with place.locked():
        credentials = place.credentials()
        if name == credentials["owner"]["username"]:
            credentials["owner"]["password"] = password
        else:
            account = {
                "username": name,
                "role": user["role"],
                "password": password,
                "api_key": user["api_key"],
            }
            credentials.setdefault("users", {})[name] = account
        place.write_credentials(credentials)


def _all(api: "_Api") -> list[User]:
    inside: defaultdict[str, list[str]] = defaultdict(list)
    workspaces = api.call("GET", "/me/workspaces")["items"]
    for workspace in workspaces:
        for member in api.call("GET", f"/workspaces/{workspace['id']}/users")["items"]:
            inside[member["username"]].append(workspace["name"])
    answers: Counter[str] = Counter()
    for dataset in api.call("GET", "/me/datasets")["items"]:
        for user in api.call("GET", f"/datasets/{dataset['id']}/users/progress")["users"]:
            answers[user["username"]] += sum(
                sum(user[part].values()) for part in ("completed", "pending") if user.get(part)
            )
    return [
        User(
            user["username"],
            user["role"],
            user["last_name"] == SIMULATED,
            sorted(inside[user["username"]]) if user["role"] != "owner" else ["all"],
            answers[user["username"]],
        )
        for user in _users(api)
    ]


def _users(api: "_Api") -> list[dict[str, Any]]:
    return api.call("GET", "/users")["items"]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}."


def _reach(home: Path | str) -> tuple[Home, "_Api"]:
    place = Home(Path(home))
    state = status(place.path)
    if not state["answers"]:
        raise LabelingError(
            f"no server answers for home {place.path}: start it with {place.command('up')}"
        )
    return place, _Api(place, state["url"])


class _Api:
    """Calls with the owner's key, which goes out only over a connection whose server has shown that
    it is the home's.
    """

    def __init__(self, place: Home, url: str) -> None:
        self.place, self.url, self.api_key = place, url, place.credentials()["owner"]["api_key"]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"X-Argilla-Api-Key": self.api_key, "Content-Type": "application/json"}
        try:
            with contextlib.closing(proof.connect(self.place, self.url, 30)) as connection:
                connection.request(
                    method, f"/api/v1{path}", None if body is None else json.dumps(body), headers
                )
                answer = connection.getresponse()
                said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise LabelingError(f"the server at {self.url} does not answer ({error})") from error
        if answer.status >= 300:
            raise LabelingError(
                f"the server refused {method} {path} ({answer.status}):"
                f" {said.decode(errors='replace')}"
            )
        return json.loads(said)
