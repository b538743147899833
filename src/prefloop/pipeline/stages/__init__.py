"""One file a stage: SFT, sampling, labels, reward model, preference losses, PPO, comparison."""
