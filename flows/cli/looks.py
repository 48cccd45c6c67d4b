"""``retrain looks``: the evaluations that share a year's error budget."""

from __future__ import annotations

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, open_registry


def looks(as_json: AsJson = False) -> None:
    """Print the looks at judging patients that share the error budget of 365 days: taken, left, and any problem."""
    from tasks.commands.describe_looks import describe_looks

    facts = describe_looks(*open_registry())
    console.emit(facts, as_json, display.facts)
