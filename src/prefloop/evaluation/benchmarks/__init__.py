"""lm-eval's tasks and a domain's own questions, before and after training."""
