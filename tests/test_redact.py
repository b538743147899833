"""Addresses lose what may be a secret, everything else stays."""

import pytest

from prefloop.redact import without_secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("--ppo.rewards http://u:pw@host:1/score?token=abc 1.0", "--ppo.rewards http://host:1/score 1.0"),
        ('[["https://h/x?k=1#f", 2.0], ["a.py:f", 1]]', '[["https://h/x", 2.0], ["a.py:f", 1]]'),
        ("http://127.0.0.1:8000/v1 --model a@b", "http://127.0.0.1:8000/v1 --model a@b"),
        ("runs/x?y.jsonl --algo ppo", "runs/x?y.jsonl --algo ppo"),
        ("x=https://user@h", "x=https://h"),
    ],
)
def test_addresses_lose_user_password_query_and_fragment(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
