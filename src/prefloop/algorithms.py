"""What --algo may name: one registry, a flag is a look-up."""

from __future__ import annotations

from collections.abc import Callable

from prefloop.config import RLHFConfig
from prefloop.errors import ConfigError, nearest
from prefloop.stage import Stage


def _ppo(config: RLHFConfig) -> Stage:
    from prefloop.stages.ppo import PPO

    return PPO(config.ppo, config.data, config.gold)


def _preference(loss: str) -> Callable[[RLHFConfig], Stage]:
    def make(config: RLHFConfig) -> Stage:
        from prefloop.stages.preference import Preference

        return Preference(loss, config.preference)

    return make


ALGORITHMS: dict[str, Callable[[RLHFConfig], Stage]] = {
    "ppo": _ppo,
    **{loss: _preference(loss) for loss in ("dpo", "ipo", "hinge", "orpo", "simpo")},
}
"""Name → the stage that turns an SFT adapter into an aligned one; its artifact fills the slot of the same name."""


def algorithm(config: RLHFConfig) -> Stage:
    """The stage that ``config.algo`` names; raises ``ConfigError`` with the nearest known name."""
    if config.algo not in ALGORITHMS:
        raise ConfigError(
            f"algo: unknown algorithm '{config.algo}' ({nearest(config.algo, ALGORITHMS)}; one of {', '.join(ALGORITHMS)})"
        )
    return ALGORITHMS[config.algo](config)
