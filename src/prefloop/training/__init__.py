"""Training steps: the loop, DPO and kin, KTO, PPO, the audit, the guard against reward hacking."""
