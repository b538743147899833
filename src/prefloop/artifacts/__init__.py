"""What a run leaves on disk: the store, manifests, and references such as ``runs/demo:ppo``."""
