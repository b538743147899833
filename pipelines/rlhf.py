"""From demonstrations to a judged, aligned model in one resumable command.

    python pipelines/rlhf.py --config examples/demo.yaml
    python pipelines/rlhf.py --config examples/demo.yaml --algo dpo
    python pipelines/rlhf.py --config examples/demo.yaml --ppo.kl.coef 0.1 --rollout transformers

The same command again reuses every stage whose configuration, files and inputs are unchanged; after a kill it goes on from the last
checkpoint. --config names a YAML file with the fields below; every flag overrides one field.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefloop.config import RLHFConfig
from prefloop.settings import parse

if TYPE_CHECKING:
    from prefloop.stage import Stage


def compose(config: RLHFConfig) -> "list[Stage]":
    """The stages of a run; what each needs and fills wires them together."""
    from prefloop.algorithms import REWARD_ONLY, algorithm
    from prefloop.stages.evaluate import Evaluate
    from prefloop.stages.label import Label
    from prefloop.stages.reference import Reference
    from prefloop.stages.reward import RewardModel
    from prefloop.stages.reward_test import RewardTest
    from prefloop.stages.sample import Sample
    from prefloop.stages.sft import SFT

    data, simulated = config.data, config.label.source == "simulated"
    with_sft = data.demonstrations is not None or simulated or config.algo != REWARD_ONLY
    stages: list[Stage] = [
        *([SFT(config.sft, data)] if with_sft else []),
        *([Sample(config.sample, data)] if simulated else []),
        Label(config.label, data, config.gold),
        RewardModel(config.reward, from_sft=with_sft),
        *([RewardTest(data)] if data.reward_tests else []),
    ]
    if config.algo == REWARD_ONLY:
        return stages
    policy = algorithm(config)
    reference = [Reference()] if "reference" in policy.inputs else []
    return [*stages, *reference, policy, Evaluate(config.evaluate, data, config.gold)]


def main(arguments: Sequence[str]) -> None:
    """Parse, compose, run."""
    config = parse(arguments, prog="rlhf.py", description=__doc__ or "")
    from prefloop.pipeline import Pipeline
    from prefloop.runtime import Runtime

    runtime = Runtime(config.backbone, config.generation, config.rollout, config.seed, config.output, config.trackers)
    pipeline = Pipeline(compose(config), runtime, notes=config.notes)
    pipeline.run(config.output / config.run, command=" ".join(["pipelines/rlhf.py", *arguments]), algo=config.algo)


if __name__ == "__main__":
    from prefloop.cli import guarded

    sys.exit(guarded(main, sys.argv[1:]))
