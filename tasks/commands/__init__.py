"""What a person asks for besides a night."""
