"""Child processes, their workers and devices."""
