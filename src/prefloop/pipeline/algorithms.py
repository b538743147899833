"""The stage of every algorithm: one registry, ``--algo`` is a look-up."""

from __future__ import annotations

from collections.abc import Callable

from prefloop.base.redact import short
from prefloop.config import RLHFConfig
from prefloop.config.algorithms import PAIR, POLICIES, REWARD_ONLY, ROLLOUTS, SFT_ONLY
from prefloop.config.trl import PREFIX, TRAINERS, require_method
from prefloop.errors import ConfigError, among
from prefloop.pipeline.stage import Stage


def _rollouts(algo: str) -> Callable[[RLHFConfig], Stage]:
    def make(config: RLHFConfig) -> Stage:
        from prefloop.pipeline.stages.ppo import PPO

        if config.ppo.uncertainty_penalty and config.reward.members < 2:
            raise ConfigError(
                "ppo.uncertainty_penalty needs reward.members of at least 2: one member has no"
                " spread"
            )
        return PPO(config.ppo, config.data, config.gold, algo)

    return make


def _preference(loss: str) -> Callable[[RLHFConfig], Stage]:
    def make(config: RLHFConfig) -> Stage:
        from prefloop.pipeline.stages.preference import Preference

        return Preference(loss, config.preference)

    return make


def _kto(config: RLHFConfig) -> Stage:
    from prefloop.pipeline.stages.kto import KTO

    return KTO(config.preference)


def _trl(config: RLHFConfig) -> Stage:
    from prefloop.pipeline.stages.trl import Trl

    stage = Trl(config.algo.removeprefix(PREFIX), config.trl, config.data)
    require_method(config.backbone.adapter.method)
    return stage


ALGORITHMS: dict[str, Callable[[RLHFConfig], Stage]] = {
    **{name: _rollouts(name) for name in ROLLOUTS},
    "kto": _kto,
    **{loss: _preference(loss) for loss in PAIR},
    **{f"{PREFIX}{trainer}": _trl for trainer in TRAINERS},
}
"""Name → the stage that turns an SFT adapter into an aligned one; its artifact fills the slot of
the same name (``config.trl.slot_of``).
"""


def register(name: str, make: Callable[[RLHFConfig], Stage]) -> None:
    """Let ``--algo`` name an algorithm of your own, whose stage ``make`` gives; its policy is
    compared and reported as the others are.
    """
    ALGORITHMS[name] = make
    if name not in POLICIES:
        POLICIES.append(name)


def algorithm(config: RLHFConfig) -> Stage:
    """The stage that ``config.algo`` names; raises ``ConfigError`` with the among known name."""
    if config.algo.startswith(PREFIX):
        return _trl(config)  # which says more of an unknown trainer
    names = [*ALGORITHMS, REWARD_ONLY, SFT_ONLY]
    if config.algo not in ALGORITHMS:
        raise ConfigError(
            f"algo: unknown algorithm {short(config.algo)} ({among(config.algo, names)})"
        )
    return ALGORITHMS[config.algo](config)
