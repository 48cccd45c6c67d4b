"""What a training is asked for, and the process that carries it out."""
