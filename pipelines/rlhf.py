"""From demonstrations to a judged, aligned model in one resumable command.

    python pipelines/rlhf.py --config examples/demo.yaml
    python pipelines/rlhf.py --config examples/demo.yaml --algo dpo
    python pipelines/rlhf.py --config examples/demo.yaml --ppo.kl.coef 0.1 --rollout transformers
    python pipelines/rlhf.py --config examples/demo.yaml --labels argilla://default/demo --rounds 2

The same command again reuses every stage whose configuration, files and inputs are unchanged; after
a kill it goes on from the last checkpoint. --config names a YAML file with the fields below; every
flag overrides one field.
"""

import sys
from collections.abc import Sequence

from prefloop.config.load import parse


def main(arguments: Sequence[str]) -> None:
    """Parse, compose, run."""
    config = parse(arguments, prog="rlhf.py", description=__doc__ or "")
    from prefloop.base.redact import command_without_secrets
    from prefloop.pipeline.compose import run

    run(config, command_without_secrets(["pipelines/rlhf.py", *arguments]))


if __name__ == "__main__":
    from prefloop.cli import TRAINED, guarded

    sys.exit(guarded(main, sys.argv[1:], TRAINED))
