"""What is no longer needed, and how it is removed."""
