"""Every function of ``objectives/`` is called with its shapes checked here."""

from shape_letters import check_module

from prefloop.objectives import calibration, estimators, ppo, preference, reward

for module in (calibration, estimators, ppo, preference, reward):
    check_module(module)
