"""One round of labels alone: sample, put to the vote, wait, train the reward model, choose the next
pairs.

    python pipelines/label_round.py --config examples/demo.yaml --labels argilla://default/demo

Takes what pipelines/rlhf.py takes; no policy is trained, so --algo changes nothing, and --rounds
stays 1. The run is called <run>-round; the stages are those of rlhf.py, which reuses them. The next
pairs are of fresh samples of the SFT model, in <output>/<run>-round/artifacts/pairs/pairs.jsonl,
ready for `prefloop label push`.
"""

import sys
from collections.abc import Sequence

from prefloop.config.load import parse


def main(arguments: Sequence[str]) -> None:
    """Parse, compose, run."""
    config = parse(arguments, prog="label_round.py", description=__doc__ or "")
    from prefloop.base.console import say
    from prefloop.base.redact import command_without_secrets
    from prefloop.errors import ConfigError
    from prefloop.pipeline.compose import votes_and_reward
    from prefloop.pipeline.pipeline import Pipeline
    from prefloop.pipeline.stages.sample import Sample
    from prefloop.pipeline.stages.select_pairs import Choose
    from prefloop.pipeline.stages.sft import SFT
    from prefloop.runs.runtime import Runtime

    if config.label.source == "file":
        raise ConfigError(
            "label.source is 'file': a round puts sampled candidates to the vote, say --labels"
            " argilla or simulated"
        )
    if config.rounds != 1:
        raise ConfigError("label_round.py does one round: leave --rounds out, or run rlhf.py")
    next_pairs = [Sample(config.sample, config.data).in_round(2), Choose(config.label).in_round(2)]
    stages = [
        SFT(config.sft, config.data),
        *votes_and_reward(config, 1, with_sft=True),
        *next_pairs,
    ]
    runtime = Runtime(
        config.backbone,
        config.generation,
        config.rollout,
        config.seed,
        config.output,
        config.trackers,
    )
    folder = config.output / f"{config.run}-round"
    command = command_without_secrets(["pipelines/label_round.py", *arguments])
    Pipeline(stages, runtime, notes=config.disclosed()).run(folder, command, config=config)
    say(f"the next pairs: {folder / 'artifacts' / 'pairs' / 'pairs.jsonl'}")


if __name__ == "__main__":
    from prefloop.cli import TRAINED, guarded

    sys.exit(guarded(main, sys.argv[1:], TRAINED))
