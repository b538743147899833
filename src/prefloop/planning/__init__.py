"""What fits a device, how long a run takes, and what to change."""
