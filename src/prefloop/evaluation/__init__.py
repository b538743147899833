"""Which policy is better, by which judge, and how far that judge can be trusted."""
