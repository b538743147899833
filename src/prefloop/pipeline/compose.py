"""From a configuration to the stages of a run, and the run itself; ``pipelines/rlhf.py`` starts
it.
"""

from __future__ import annotations

from prefloop.config import RLHFConfig
from prefloop.config.algorithms import REWARD_ONLY, SFT_ONLY, learns_from_votes, reward_model
from prefloop.config.trl import slot_of
from prefloop.errors import ConfigError
from prefloop.pipeline.algorithms import algorithm
from prefloop.pipeline.pipeline import Pipeline
from prefloop.pipeline.stage import Stage
from prefloop.report.summary import Summary
from prefloop.runs.runtime import Runtime


def run(config: RLHFConfig, command: str = "") -> Summary:
    """Run or reuse every stage that ``config`` asks for; returns the summary.

    ``command``: how to repeat the run, for the summary.
    """
    runtime = Runtime(
        config.backbone,
        config.generation,
        config.rollout,
        config.seed,
        config.output,
        config.trackers,
    )
    pipeline = Pipeline(compose(config), runtime, notes=config.disclosed())
    return pipeline.run(
        config.output / config.run, command=command, algo=config.algo, config=config
    )


def compose(config: RLHFConfig) -> list[Stage]:
    """The stages of a run; what each needs and fills wires them together."""
    from prefloop.pipeline.stages.evaluate import Evaluate
    from prefloop.pipeline.stages.reference import Reference
    from prefloop.pipeline.stages.reward_eval import RewardTest
    from prefloop.pipeline.stages.sft import SFT

    data, aligned = config.data, config.algo not in (REWARD_ONLY, SFT_ONLY)
    with_sft = (
        data.demonstrations is not None
        or config.label.source != "file"
        or config.algo != REWARD_ONLY
    )
    stages: list[Stage] = [SFT(config.sft, data)] if with_sft else []
    votes = learns_from_votes(config.algo) or reward_model(config) != "none"
    for number in range(1, config.rounds + 1) if config.algo != SFT_ONLY else ():
        of_round = votes_and_reward(config, number, with_sft, reward_model(config)) if votes else []
        if data.reward_tests:
            of_round.append(RewardTest(data))
        if aligned:
            policy = algorithm(config)
            of_round += [Reference(), policy] if "reference" in policy.inputs else [policy]
        stages += [stage.in_round(number) for stage in of_round]
    if aligned:
        learner = slot_of(config.algo) if reward_model(config) == "none" else ""
        stages.append(Evaluate(config.evaluate, data, config.gold, without_reward=learner))
    if config.bench.tasks or config.bench.domain:
        from prefloop.pipeline.stages.bench import Bench

        stages.append(Bench(config.bench, data.bad_rows))
    return stages


def votes_and_reward(
    config: RLHFConfig, number: int, with_sft: bool, reward: str = "needed"
) -> list[Stage]:
    """The stages from candidates to a reward model, where there is one
    (``config.algorithms.reward_model``).

    Later rounds sample from the policy of the round before and choose the pairs that its reward
    model is least sure of.
    """
    from prefloop.pipeline.stages.label import Label
    from prefloop.pipeline.stages.reward import RewardModel
    from prefloop.pipeline.stages.sample import Sample
    from prefloop.pipeline.stages.select_pairs import Choose

    if config.label.source != "file" and config.sample.candidates < 2:
        raise ConfigError(
            "sample.candidates is 1, and a vote is between two candidates of a prompt: give 2 or"
            " more"
        )
    policy = "sft" if number == 1 or config.algo == REWARD_ONLY else slot_of(config.algo)
    return [
        *([Sample(config.sample, config.data, policy)] if config.label.source != "file" else []),
        *([Choose(config.label)] if number > 1 else []),
        Label(config.label, config.data, config.gold, config.simulate),
        *(
            [RewardModel(config.reward, from_sft=with_sft, optional=reward == "judge")]
            if reward != "none"
            else []
        ),
    ]
