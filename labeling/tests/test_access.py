"""Who may call what: the engine sits behind Argilla's own rules."""

import httpx
import pytest

from .conftest import Account, Dataset, Server, client_of


@pytest.fixture(scope="module")
def dataset(server: Server) -> Dataset:
    dataset = server.dataset(metadata={"source": "terms"})
    dataset.log({"fields": {"prompt": "p"}, "metadata": {"source": "hh"}})
    return dataset


def calls(dataset: Dataset) -> list[tuple[str, str]]:
    prefix = f"/datasets/{dataset.id}"
    return [
        ("POST", f"{prefix}/records/search"),
        ("POST", f"/me{prefix}/records/search"),
        ("GET", f"{prefix}/progress"),
        ("GET", f"/me{prefix}/metrics"),
        ("DELETE", prefix),
        ("GET", "/users"),
    ]


def test_without_a_valid_key_everything_is_401(server: Server, dataset: Dataset) -> None:
    for key in (None, "wrong"):
        client = client_of(server.url, key)
        for method, path in calls(dataset):
            assert (
                client.request(method, path, json={} if method == "POST" else None).status_code
                == 401
            ), (
                method,
                path,
            )
        record = dataset.search()["items"][0]["record"]["id"]
        assert (
            client.post(f"/records/{record}/responses", json={"status": "draft"}).status_code == 401
        )


def test_annotators_search_as_themselves_only(
    server: Server, dataset: Dataset, ann: Account
) -> None:
    statuses = {
        (method, path): ann.client.request(
            method, path, json={} if method == "POST" else None
        ).status_code
        for method, path in calls(dataset)
    }
    prefix = f"/datasets/{dataset.id}"
    assert statuses.pop(("POST", f"/me{prefix}/records/search")) == 200
    assert statuses.pop(("GET", f"/me{prefix}/metrics")) == 200
    assert statuses.pop(("GET", f"{prefix}/progress")) == 200
    assert set(statuses.values()) == {403}, statuses


def test_users_outside_the_workspace_are_refused(server: Server, dataset: Dataset) -> None:
    body = {
        "first_name": "out",
        "username": "outsider",
        "role": "annotator",
        "password": "a-long-password",
    }
    outsider = server.owner.post("/users", json=body).json()
    client = client_of(server.url, outsider["api_key"])
    assert client.post(f"/me/datasets/{dataset.id}/records/search", json={}).status_code == 403
    assert client.get(f"/me/datasets/{dataset.id}/metrics").status_code == 403


def test_the_owner_signs_in_with_the_password_of_the_credentials_file(server: Server) -> None:
    owner = server.home.credentials()["owner"]
    for password, status in ((owner["password"], 201), ("wrong-password", 401)):
        form = {"username": owner["username"], "password": password}
        answer = httpx.post(f"{server.url}/api/v1/token", data=form, trust_env=False)
        assert answer.status_code == status, answer.text
        if status == 201:
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            assert (
                httpx.get(f"{server.url}/api/v1/me", headers=headers, trust_env=False).json()[
                    "role"
                ]
                == "owner"
            )
