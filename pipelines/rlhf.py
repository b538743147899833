"""From demonstrations to a judged, aligned model in one resumable command.

    python pipelines/rlhf.py --config examples/demo.yaml
    python pipelines/rlhf.py --config examples/demo.yaml --algo dpo
    python pipelines/rlhf.py --config examples/demo.yaml --ppo.kl.coef 0.1 --rollout transformers
    python pipelines/rlhf.py --config examples/demo.yaml --labels argilla://default/demo --rounds 2

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
    from prefloop.algorithms import algorithm
    from prefloop.config.algorithms import REWARD_ONLY, SFT_ONLY, reward_model
    from prefloop.stages.evaluate import Evaluate
    from prefloop.stages.reference import Reference
    from prefloop.stages.reward_test import RewardTest
    from prefloop.stages.sft import SFT

    data, aligned = config.data, config.algo not in (REWARD_ONLY, SFT_ONLY)
    with_sft = data.demonstrations is not None or config.label.source != "file" or config.algo != REWARD_ONLY
    stages: list[Stage] = [SFT(config.sft, data)] if with_sft else []
    for number in range(1, config.rounds + 1) if config.algo != SFT_ONLY else ():
        of_round = votes_and_reward(config, number, with_sft, reward_model(config))
        if data.reward_tests:
            of_round.append(RewardTest(data))
        if aligned:
            policy = algorithm(config)
            of_round += [Reference(), policy] if "reference" in policy.inputs else [policy]
        stages += [stage.in_round(number) for stage in of_round]
    if aligned:
        learner = config.algo if reward_model(config) == "none" else ""
        stages.append(Evaluate(config.evaluate, data, config.gold, without_reward=learner))
    if config.bench.tasks or config.bench.domain:
        from prefloop.stages.bench import Bench

        stages.append(Bench(config.bench, data.bad_rows))
    return stages


def votes_and_reward(config: RLHFConfig, number: int, with_sft: bool, reward: str = "needed") -> "list[Stage]":
    """From candidates to a reward model, where there is one (``algorithms.reward_model``); later rounds sample from the policy before and choose what its reward model is least sure of."""
    from prefloop.config.algorithms import REWARD_ONLY
    from prefloop.errors import ConfigError
    from prefloop.stages.choose import Choose
    from prefloop.stages.label import Label
    from prefloop.stages.reward import RewardModel
    from prefloop.stages.sample import Sample

    if config.label.source != "file" and config.sample.candidates < 2:
        raise ConfigError("sample.candidates is 1, and a vote is between two candidates of a prompt: give 2 or more")
    policy = "sft" if number == 1 or config.algo == REWARD_ONLY else config.algo
    return [
        *([Sample(config.sample, config.data, policy)] if config.label.source != "file" else []),
        *([Choose(config.label)] if number > 1 else []),
        Label(config.label, config.data, config.gold, config.simulate),
        *([RewardModel(config.reward, from_sft=with_sft, optional=reward == "judge")] if reward != "none" else []),
    ]


def main(arguments: Sequence[str]) -> None:
    """Parse, compose, run."""
    config = parse(arguments, prog="rlhf.py", description=__doc__ or "")
    from prefloop.pipeline import Pipeline
    from prefloop.redact import command_without_secrets
    from prefloop.runtime import Runtime

    runtime = Runtime(config.backbone, config.generation, config.rollout, config.seed, config.output, config.trackers)
    pipeline = Pipeline(compose(config), runtime, notes=config.disclosed())
    command = command_without_secrets(["pipelines/rlhf.py", *arguments])
    pipeline.run(config.output / config.run, command=command, algo=config.algo, config=config)


if __name__ == "__main__":
    from prefloop.cli import TRAINED, guarded

    sys.exit(guarded(main, sys.argv[1:], TRAINED))
