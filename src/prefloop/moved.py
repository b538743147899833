"""Old import paths from documentation and examples. Importing one raises an error with the new
path.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW = {
    "prefloop.algorithms": "from prefloop import register, or prefloop.pipeline.algorithms",
    "prefloop.bench": "prefloop.evaluation.benchmarks",
    "prefloop.console": "prefloop.base.console",
    "prefloop.judging": "prefloop.evaluation and prefloop.stats; from prefloop import Verdict",
    "prefloop.labels": (
        "prefloop.labeling and prefloop.stats; from prefloop import Argilla, Connection"
    ),
    "prefloop.manifest": "prefloop.artifacts.manifest",
    "prefloop.opening": "from prefloop import open_policies",
    "prefloop.replies": "prefloop.data.replies",
    "prefloop.results": "prefloop.artifacts.references",
    "prefloop.runtime": "from prefloop import Runtime",
    "prefloop.sealed": "prefloop.base.sealed",
    "prefloop.settings": "from prefloop import load_config, or prefloop.config.load",
    "prefloop.stage": "from prefloop import Stage",
    "prefloop.stages": (
        "from prefloop import SFT, Label, RewardModel, PPO, Preference, KTO, Evaluate"
    ),
    "prefloop.store": "from prefloop import Artifact, read_rows, write_rows",
    "prefloop.talk": "prefloop.chat",
    "prefloop.training.pairs": "prefloop.training.dpo",
    "prefloop.training.thumbs": "prefloop.training.kto",
}


class Moved(MetaPathFinder):
    """An import hook that raises for the old paths and finds no modules itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in NEW:
            raise ModuleNotFoundError(f"{fullname} has moved: {NEW[fullname]}", name=fullname)
        return None
