"""The commands of ``prefloop``, one file each."""
