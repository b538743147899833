"""What a checkpoint of PPO holds besides parameters comes back as it was written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from step_figures import figures
from torch import nn

from prefloop.config import OptimConfig
from prefloop.errors import StoreError
from prefloop.pipeline.stages.ppo import PPOState
from prefloop.training.alarm import AlarmState, Best, Mean, Reading
from prefloop.training.loop import Loop
from prefloop.training.reward_guard import AlarmEvent, GuardState


def loop(folder: Path) -> Loop:
    return Loop({"w": nn.Parameter(torch.ones(2))}, OptimConfig(), 4, folder)


def test_without_a_checkpoint_training_starts_with_the_configured_penalty(tmp_path: Path) -> None:
    state = PPOState.restore(loop(tmp_path), 0.05)
    assert (state.step, state.kl_coef, state.metrics) == (0, 0.05, None)


def test_every_field_survives_a_checkpoint(tmp_path: Path) -> None:
    reading = Reading(3, *(Mean(k / 7, 0.1, k) for k in range(5)), gold=Mean(0.5, 0.0, 0))
    alarm = AlarmState(3, (reading,), (reading, reading), (), Best(2, 1 / 3), ("kl",))
    event = AlarmEvent(3, ["the KL is high"], "rollback", 2, 0.1)
    guard = GuardState(alarm, (event,), 1, figures(gold_mean=None), None)
    state = PPOState(3, 0.1, True, figures(reward_mean=1 / 3), ["one BOS: 3 prompts"], guard)
    loop(tmp_path).save(dataclasses.asdict(state))
    assert PPOState.restore(loop(tmp_path), 0.05) == state


def test_a_figure_that_is_no_number_survives_a_checkpoint(tmp_path: Path) -> None:
    figure = figures(explained_variance=math.nan)
    loop(tmp_path).save(dataclasses.asdict(PPOState(1, 0.1, False, figure, [], GuardState())))
    metrics = PPOState.restore(loop(tmp_path), 0.05).metrics
    assert metrics is not None and math.isnan(metrics.explained_variance or 0)


def test_a_checkpoint_of_another_version_names_the_folder_to_delete(tmp_path: Path) -> None:
    old = {"round": 2, "kl_coef": 0.05, "stopped": False, "metrics": {}, "audit": [], "watch": {}}
    loop(tmp_path).save(old)
    with pytest.raises(StoreError, match=rf"{tmp_path}.*another version.*delete that folder"):
        PPOState.restore(loop(tmp_path), 0.05)
