"""Settings that must hold before torch and transformers load, and models that the whole session
shares.
"""

import compileall
import gc
import os
import random
import signal
import sys

# One thread: tiny matrices gain nothing from a second, and sums come out the same in every process
# that is compared with another.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    TRL_EXPERIMENTAL_SILENCE="1",
    OMP_NUM_THREADS="1",
    # A module that a test writes twice within a second would be taken for its first version.
    PYTHONDONTWRITEBYTECODE="1",
)
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# Test modules and the package are compiled once for all processes, whatever the environment says.
sys.dont_write_bytecode = False

# The same examples in every run, however long they take: a test fails for a change and never for a
# draw or a busy machine.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

if TYPE_CHECKING:
    from labeling_server import Labeling


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny_folders("qwen2")`` is a folder with a tiny random model of that kind, saved once a
    session.
    """
    from tiny import tiny_model

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_model(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny_folders: Callable[[str], Path]) -> Path:
    """A folder with a tiny random Llama and a ChatML tokenizer."""
    return tiny_folders("llama")


@pytest.fixture(scope="session")
def labeling(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Labeling"]:
    """A real Argilla with its worker, started once a session."""
    import labeling_server

    with labeling_server.running(tmp_path_factory.mktemp("labeling") / "home") as server:
        yield server


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C, nohup a hang-up, and
    # so would every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(__file__).parents[1] / "src", quiet=2)
    config.addinivalue_line(
        "markers",
        "slow: starts pipelines, engines or servers, or takes seconds; runs after the fast tests,"
        " and never in make test-fast",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same numbers, whichever ran before it in its process."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def pytest_collection_finish(session: pytest.Session) -> None:
    # What is imported stays: accelerate collects garbage after every training, a tenth of a second
    # for looking through torch alone.
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first; with several workers last, where they fill the gaps that long files leave
    at the end.
    """
    spread = hasattr(config, "workerinput")

    def is_slow(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None or "labeling" in getattr(
            item, "fixturenames", ()
        )

    items.sort(key=lambda item: is_slow(item) != spread)
