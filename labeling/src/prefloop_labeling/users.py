"""Accounts for annotators, made through the running server's own API with the owner's key."""

import json
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from prefloop_labeling.home import Home, LabelingError
from prefloop_labeling.server import status

ROLES = ("annotator", "admin", "owner")


def add_user(home: Path | str, username: str, role: str = "annotator", workspace: str = "default") -> dict[str, Any]:
    """Create a user with a random password, in a workspace (made when missing), and keep both in credentials.json.

    Returns `{username, role, password, api_key}`. Raises LabelingError when no server runs or the server refuses.
    """
    if role not in ROLES:
        raise LabelingError(f"role {role!r} is unknown: use one of {', '.join(ROLES)}")
    place = Home(Path(home))
    state = status(place.path)
    if not state["answers"]:
        raise LabelingError(f"no server answers for home {place.path}: start it with `up` first")
    credentials = place.credentials()
    api = _Api(state["url"], credentials["owner"]["api_key"])
    password = secrets.token_urlsafe(18)
    user = api.call(
        "POST", "/users", {"first_name": username, "username": username, "role": role, "password": password}
    )
    workspaces = {found["name"]: found["id"] for found in api.call("GET", "/me/workspaces")["items"]}
    workspace_id = workspaces.get(workspace) or api.call("POST", "/workspaces", {"name": workspace})["id"]
    api.call("POST", f"/workspaces/{workspace_id}/users", {"user_id": user["id"]})
    account = {"username": username, "role": role, "password": password, "api_key": user["api_key"]}
    with place.locked():
        credentials = place.credentials()
        credentials.setdefault("users", {})[username] = account
        place.write_credentials(credentials)
    return account


class _Api:
    def __init__(self, url: str, api_key: str) -> None:
        self.url, self.api_key = url, api_key
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Argilla-Api-Key": self.api_key, "Content-Type": "application/json"},
        )
        try:
            with self.opener.open(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            raise LabelingError(f"the server refused {method} {path} ({error.code}): {detail}") from error
        except OSError as error:
            raise LabelingError(f"the server at {self.url} does not answer ({error})") from error
