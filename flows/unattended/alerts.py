"""Alerts and watchdogs as Prefect automations: their definitions, and applying them to a server.

A night emits ``malaria.night.<verdict>`` (flows/events.py); Prefect itself emits how runs end and their heartbeats.
Each alert is one automation that posts to one webhook, whose address is stored as a secret on Prefect's server.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from flows.events import FIELD, FIELD_WORSE, NIGHT, TRAINING, TRAINING_FAILED, night_event
from flows.unattended.bodies import body, headers
from infra.prefect_api import PrefectServer
from infra.settings.groups import AlertSettings
from validation.digest import digest
from validation.records import Verdict

if TYPE_CHECKING:
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

log = logging.getLogger(__name__)
Json = dict[str, Any]

PREFIX = "malaria: "
WATCH_BEGAN = "malaria.watch.began"
BLOCK = "malaria-alerts"
FLOW = "retrain"
VERDICTS = (Verdict.PROMOTED, Verdict.INVALID_DATA, Verdict.AWAITING_APPROVAL, Verdict.CHAMPION_UNUSABLE)
_NIGHT_TEXT = (
    "{{ event.payload.sentence }} (report: {{ event.payload.page or event.payload.report or 'none' }}"
    "{% if event.payload.form %}; answer: {{ event.payload.form }}{% endif %})"
)
_RUN_TEXT = "{{ event.resource.name }}: {{ event.payload.validated_state.message or 'no reason is known' }}"


def definitions(settings: AlertSettings, block: str | None) -> list[AutomationCore]:
    """Return all automations; ``block`` is the id of the webhook's block, if any."""
    # Prefect reads the environment when it is imported: a command has prepared that by now.
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    failed_night = _seen(
        {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
        "prefect.flow-run.*",
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
    )
    no_night = _missed(
        {f"{NIGHT}.*"}, "malaria.*", after={f"{NIGHT}.*", WATCH_BEGAN}, within=settings.night_hours * 3600
    )
    zombie_run = _missed(
        {"prefect.flow-run.*"},
        "prefect.flow-run.*",
        after={"prefect.flow-run.heartbeat"},
        within=settings.zombie_seconds,
        for_each={"prefect.resource.id"},
    )
    mark_crashed = ChangeFlowRunState(
        state=StateType.CRASHED,
        name="Crashed",
        message=f"no heartbeat for {settings.zombie_seconds:g} s: its process is gone",
        force=True,
    )
    hours = f"{settings.night_hours:g} hours"
    make = partial(_automation, settings, block)
    return [
        make("failed night", failed_night, _RUN_TEXT),
        *(make(one.value, _seen({night_event(one)}, NIGHT), _NIGHT_TEXT) for one in VERDICTS),
        # Such a night continues with the other CNN, and its verdict alone does not show the failure.
        make("failed training", _seen({TRAINING_FAILED}, TRAINING), _NIGHT_TEXT),
        make("worse than promised", _seen({FIELD_WORSE}, FIELD), _NIGHT_TEXT),
        make("no night", no_night, f"no night has been completed for {hours}"),
        make("zombie run", zombie_run, "{{ event.resource.name }}: no heartbeat, marked crashed", mark_crashed),
    ]


def apply_alerts(server: PrefectServer, settings: AlertSettings) -> dict[str, str]:
    """Bring the server's automations in line; return for each: created, changed, unchanged or removed.

    An unchanged automation is left alone, since an update resets a watchdog.
    """
    block = _webhook_block(server, settings)
    wanted = {definition.name: as_json(definition) for definition in definitions(settings, block)}
    done: dict[str, str] = {}
    stored = [one for one in server.ask("POST", "/automations/filter", {}) if one["name"].startswith(PREFIX)]
    for automation in stored:
        name = automation["name"]
        if name not in wanted or name in done:
            server.ask("DELETE", f"/automations/{automation['id']}")
            done.setdefault(name, "removed")
        elif automation["tags"] == wanted[name]["tags"]:
            done[name] = "unchanged"
        else:
            server.ask("PUT", f"/automations/{automation['id']}", wanted[name])
            done[name] = "changed"
    for name in wanted.keys() - done.keys():
        server.ask("POST", "/automations/", wanted[name])
        done[name] = "created"
    if settings.webhook is None:
        if (unused := _stored_block(server)) is not None:
            server.ask("DELETE", f"/block_documents/{unused['id']}")
        log.info("no webhook is set (RETRAIN_ALERTS__WEBHOOK): alerts only appear on Prefect's page")
    if done.get(f"{PREFIX}no night") in ("created", "changed"):
        # Starts the watchdog, so that it fires even if no night ever completes.
        server.emit(WATCH_BEGAN, {"prefect.resource.id": "malaria.watch"})
    return done


def _automation(
    settings: AlertSettings, block: str | None, name: str, trigger: EventTrigger, text: str, *first: ActionTypes
) -> AutomationCore:
    from prefect.events.actions import CallWebhook, DoNothing
    from prefect.events.schemas.automations import AutomationCore

    title = PREFIX + name
    call = CallWebhook(block_document_id=UUID(block), payload=body(settings, name, title, text)) if block else None
    actions = [*first, call or DoNothing()]
    made = AutomationCore(
        name=title, description="See docs/how-to/unattended.md, Alerts", enabled=True, trigger=trigger, actions=actions
    )
    said = as_json(made)
    made.tags = ["malaria-retraining", f"definition:{digest(said['trigger'], said['actions'])}"]
    return made


def as_json(automation: AutomationCore) -> Json:
    """Return an automation as Prefect's interface takes it; its sets in order, so that equal ones are equal texts."""
    said: Json = automation.model_dump(mode="json", exclude={"owner_resource"})
    for name in ("after", "expect", "for_each"):
        said["trigger"][name] = sorted(said["trigger"][name])
    return said


def _seen(expect: set[str], resource: str, *, match_related: dict[str, str] | None = None) -> EventTrigger:
    return _trigger("Reactive", expect, resource, within=0, match_related=match_related or {})


def _missed(
    expect: set[str], resource: str, *, after: set[str], within: float, for_each: set[str] | None = None
) -> EventTrigger:
    return _trigger("Proactive", expect, resource, within=within, after=after, for_each=for_each or set())


def _trigger(
    posture: Literal["Reactive", "Proactive"], expect: set[str], resource: str, *, within: float, **more: Any
) -> EventTrigger:
    from prefect.events.schemas.automations import EventTrigger, Posture

    return EventTrigger(
        posture=Posture[posture],
        expect=expect,
        match={"prefect.resource.id": resource},
        threshold=1,
        within=timedelta(seconds=within),
        **more,
    )


def _webhook_block(server: PrefectServer, settings: AlertSettings) -> str | None:
    """Return the id of the block with the webhook's address, created or updated by the settings."""
    if settings.webhook is None:
        return None
    data = {"url": settings.webhook.get_secret_value(), "headers": headers(settings)}
    stored = _stored_block(server)
    if stored is None:
        type_ = server.ask("GET", "/block_types/slug/webhook")["id"]
        schemas = server.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [type_]}}})
        body = {"name": BLOCK, "block_type_id": type_, "block_schema_id": schemas[0]["id"], "data": data}
        return str(server.ask("POST", "/block_documents/", body)["id"])
    if {name: stored["data"].get(name) for name in data} != data:
        server.ask("PATCH", f"/block_documents/{stored['id']}", {"data": data, "merge_existing_data": True})
    return str(stored["id"])


def _stored_block(server: PrefectServer) -> Json | None:
    path = f"/block_types/slug/webhook/block_documents/name/{BLOCK}?include_secrets=true"
    block: Json | None = server.ask("GET", path, missing=None)
    return block
