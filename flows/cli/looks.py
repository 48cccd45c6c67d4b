"""``retrain holdout``: what the holdout has left to say, and a new generation of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, open_context

holdout = typer.Typer(
    no_args_is_help=True,
    help="The patients that only judge: how often they were looked at, and how to begin with new ones.",
)


def add_to(app: typer.Typer) -> None:
    """Add the commands to ``retrain``."""
    app.add_typer(holdout, name="holdout")


@holdout.command()
def status(as_json: AsJson = False) -> None:
    """Print the generation, its patients and cells, the looks taken and left, and what it can still show."""
    from tasks.commands.rotate_holdout import holdout_status

    context = open_context()
    facts = holdout_status(context)
    if as_json:
        console.json_line(facts)
    else:
        display.facts(_readable(facts))


@holdout.command()
def rotate(why: Annotated[str, typer.Option(help="The reason, for the record.")] = "", as_json: AsJson = False) -> None:
    """Begin a new generation with patients that no model was trained, chosen or judged on.

    The worn-out holdout goes to training. Refused, with numbers, when such patients are too few.
    """
    from tasks.commands.rotate_holdout import begin_generation

    context = open_context()
    with context.workspace.night_lock():
        generation = begin_generation(context, why)
    if as_json:
        console.json_line(generation)
        return
    display.facts(
        {
            "generation": generation.name,
            "previous": generation.previous,
            "holdout patients": generation.holdout.patients,
            "Parasitized cells": generation.holdout.positive,
            "Uninfected cells": generation.holdout.negative,
            "who": generation.who,
            "why": generation.why or None,
        }
    )


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    points = facts["detectable_difference"]
    shown = f"{100 * points:.1f} points of balanced accuracy" if points is not None else None
    return {**facts, "detectable_difference": shown}
