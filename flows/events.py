"""The events that a night emits, by name: alerts and other automations on Prefect's server wait for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from validation.records import Night, Verdict

log = logging.getLogger(__name__)

NIGHT = "malaria.night"
TRAINING = "malaria.training"
TRAINING_FAILED = f"{TRAINING}.failed"
GPU_UNUSED = f"{TRAINING}.gpu-unused"
FIELD = "malaria.field"
FIELD_WORSE = f"{FIELD}.worse-than-promised"


def night_event(verdict: Verdict) -> str:
    """Return the name of the event that announces a verdict: ``malaria.night.<verdict>``."""
    return f"{NIGHT}.{verdict.value.replace(' ', '-')}"


def emit_night_events(night: Night, links: Mapping[str, str] | None = None) -> None:
    """Emit the night's verdict, and an event for each failed training, each unused GPU, and a worse champion.

    Each has the ``links`` of the night: ``page``, its report, and ``form``, where a person answers it.
    A failure here costs no night.
    """
    # Only a flow emits; alerts read the names without loading Prefect, which reads its settings when imported.
    from prefect.events import emit_event

    payload = {
        **night.model_dump(mode="json", include={"verdict", "sentence", "decision", "report", "synthetic"}),
        "night": night.id,
        **(links or {}),
    }
    try:
        emit_event(
            event=night_event(night.verdict),
            resource={"prefect.resource.id": NIGHT, "prefect.resource.name": night.verdict.value},
            payload={**payload, "champion_before": night.champion_before, "champion_after": night.champion_after},
        )
        failed = "could not be trained, and the night continued without it"
        for event, what, models in (
            (TRAINING_FAILED, failed, night.failed_trainings),
            (GPU_UNUSED, "was trained on the CPU", night.unused_gpus),
        ):
            for model, why in models.items():
                emit_event(
                    event=event,
                    resource={"prefect.resource.id": TRAINING, "prefect.resource.name": model},
                    payload={**payload, "sentence": f"{model} {what}: {why}"},
                )
        if night.field and night.field.worse:
            emit_event(
                event=FIELD_WORSE,
                resource={"prefect.resource.id": FIELD, "prefect.resource.name": f"version {night.field.version}"},
                payload={**payload, "sentence": night.field.sentence},
            )
    except Exception as error:
        log.warning("the verdict could not be announced: %s", error)
