"""A run to talk to, and a talk with its policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import make_run

from prefloop.chat import session
from prefloop.chat.session import Talk
from prefloop.runs.open import open_policies


@pytest.fixture(scope="module", name="run")
def run_fixture(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with sft, reward and ppo."""
    return make_run(tmp_path_factory.mktemp("talk") / "runs", "demo", tiny_folder)


@pytest.fixture(name="talk")
def talk_fixture(run: Path) -> Talk:
    opened = open_policies([session.named(run, "ppo")], rollout="transformers")
    return Talk(opened, ["ppo"], run, seed=4)


def silent(side: int, text: str) -> None:
    """Hears nothing."""
