"""Measurements, each one command that prints a table: see the docstring of each module."""
