"""The page and the closing table of a run."""
