"""The reward model on files of labeled pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.artifacts.store import Artifact
from prefloop.base.console import console
from prefloop.base.sealed import write_json
from prefloop.config import DataConfig
from prefloop.evaluation.reward_files import FileReading, evaluate_file
from prefloop.evaluation.reward_table import table
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stage import Stage
from prefloop.runs.work import Work


class RewardTest(Stage):
    """The reward model on each of ``data.reward_tests``, measured by ``evaluation.reward_files``.
    Produces ``reward-test``.
    """

    name = "reward-test"
    produces = "reward-test"
    inputs = ("reward",)
    uses = frozenset({"backbone"})

    def __init__(self, data: DataConfig | None = None) -> None:
        self.data = data or DataConfig()
        self.names = [path.name for path in self.data.reward_tests]
        if len(set(self.names)) < len(self.names):
            self.names = [str(source) for source in self.data.reward_tests]

    def parts(self) -> dict[str, Any]:
        data = self.data
        return {
            "tests": list(data.reward_tests),
            "names": self.names,
            "layout": data.layout,
            "bad_rows": data.bad_rows,
            "limit": data.eval_limit,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, object]:
        reward = Reward.load(work.runtime.backbone, inputs["reward"].path)
        tests: dict[str, Mapping[str, Any]] = {}
        try:
            for number, path in enumerate(self.data.reward_tests):
                scratch = work.scratch / str(number)
                reading = FileReading(
                    scratch, work.folder, self.data.layout, self.data.bad_rows, self.data.eval_limit
                )
                tests[self.names[number]] = evaluate_file(reward, path, reading)
        finally:
            reward.drop()
        write_json(work.folder / "tests.json", tests)
        console.print(table(tests))
        return {"tests": tests}
