"""Tells Prefect how a night ended, as an event that alerts and other people's automations can wait for."""

from __future__ import annotations

import logging

from prefect.events import emit_event

from validation.records import Night, Verdict

log = logging.getLogger(__name__)


def emit_night_events(night: Night) -> None:
    """Emit ``malaria.night.<verdict>``, and one event for each CNN that the night had to do without.

    Nobody hearing it costs the alert, never the night.
    """
    told = night.model_dump(mode="json", include={"verdict", "sentence", "decision", "report", "synthetic"})
    champions = {"champion_before": night.champion_before, "champion_after": night.champion_after}
    try:
        emit_event(
            event=night_event(night.verdict),
            resource={"prefect.resource.id": NIGHT, "prefect.resource.name": night.verdict.value},
            payload={**told, **champions, "night": night.id},
        )
        for model, why in night.failed_trainings.items():
            sentence = f"{model} could not be trained, and the night went on without it: {why}"
            emit_event(
                event=TRAINING_FAILED,
                resource={"prefect.resource.id": TRAINING, "prefect.resource.name": model},
                payload={**told, "sentence": sentence, "night": night.id},
            )
    except Exception as error:
        log.warning("the verdict could not be announced: %s", error)


PREFIX = "malaria: "
NIGHT = "malaria.night"
TRAINING = "malaria.training"
TRAINING_FAILED = f"{TRAINING}.failed"


def night_event(verdict: Verdict) -> str:
    """Return the name of the event that tells how a night ended."""
    return f"{NIGHT}.{verdict.value.replace(' ', '-')}"
