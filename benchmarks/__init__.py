"""Benchmarks: each one command that prints a table and can write JSON. Ratios are taken side by side, in one run."""
