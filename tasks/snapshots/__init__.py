"""Snapshots of the store: listed, fetched, and kept as tables."""
