"""The specification of a training, and the process that carries it out."""
