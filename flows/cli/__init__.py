"""The command line, ``retrain``."""
