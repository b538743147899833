"""prefloop closes the preference loop: demonstrations, votes, reward model, PPO or DPO, judging, the next pairs to label."""

__version__ = "0.1.0"
