"""Alerts and watchdogs: what they are, and bringing Prefect's automations in line with them, again and again.

Everything a night tells is an event ``malaria.night.<verdict>`` (flows/events.py); how a run ends, and that it lives,
Prefect tells by itself. Each alert is one automation that posts to one webhook, whose address is kept as a secret of
Prefect's server.
"""

from __future__ import annotations

import logging
from typing import Any

from flows.events import NIGHT, PREFIX, TRAINING, TRAINING_FAILED, night_event
from infra.prefect_api import PrefectServer
from infra.settings.groups import AlertSettings
from validation.digest import digest
from validation.records import Verdict

log = logging.getLogger(__name__)
Json = dict[str, Any]
WATCH_BEGAN = "malaria.watch.began"
BLOCK = "malaria-alerts"
FLOW = "retrain"
_OF_A_NIGHT = "{{ event.payload.sentence }} (report: {{ event.payload.report or 'none' }})"
_OF_A_RUN = "{{ event.resource.name }}: {{ event.payload.validated_state.message or 'no reason is known' }}"


def definitions(settings: AlertSettings, block: str | None) -> list[Json]:
    """Return all automations as Prefect's interface takes them; ``block`` is the webhook's block, if there is one."""
    ended_badly = _seen(
        {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
        {"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOW},
    )
    late = _missed(
        after={f"{NIGHT}.*", WATCH_BEGAN},
        expect={f"{NIGHT}.*"},
        seconds=settings.night_hours * 3600,
        match={"prefect.resource.id": "malaria.*"},
    )
    zombie = _missed(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        seconds=settings.zombie_seconds,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each=["prefect.resource.id"],
    )
    crash = {
        "type": "change-flow-run-state",
        "state": "CRASHED",
        "name": "Crashed",
        "message": f"not heard of for {settings.zombie_seconds:g} s: its process is gone",
        "force": True,
    }
    verdicts = (Verdict.PROMOTED, Verdict.INVALID_DATA, Verdict.AWAITING_APPROVAL, Verdict.CHAMPION_UNUSABLE)
    return [
        _automation("failed night", ended_badly, _OF_A_RUN, block),
        *(
            _automation(
                verdict.value, _seen({night_event(verdict)}, {"prefect.resource.id": NIGHT}), _OF_A_NIGHT, block
            )
            for verdict in verdicts
        ),
        # The night went on with the other CNN, and its verdict may be any: nobody would look.
        _automation("failed training", _seen({TRAINING_FAILED}, {"prefect.resource.id": TRAINING}), _OF_A_NIGHT, block),
        _automation("no night", late, f"no night has been completed for {settings.night_hours:g} hours", block),
        _automation("zombie run", zombie, "{{ event.resource.name }} was not heard of: marked crashed", block, crash),
    ]


def apply_alerts(server: PrefectServer, settings: AlertSettings) -> dict[str, str]:
    """Bring the server's automations in line; return what was done to each: created, changed, unchanged, removed.

    What has not changed is left alone, since a change would make a watchdog forget what it has seen.
    """
    block = _webhook_block(server, settings)
    wanted = {definition["name"]: definition for definition in definitions(settings, block)}
    done: dict[str, str] = {}
    present = [one for one in server.ask("POST", "/automations/filter", {}) if one["name"].startswith(PREFIX)]
    for automation in present:
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
        _forget_webhook(server)
        log.info("no webhook is set (RETRAIN_ALERTS__WEBHOOK): alerts are only seen on Prefect's page")
    if done.get(f"{PREFIX}no night") in ("created", "changed"):
        # Nothing has to have happened before it can be missed.
        server.emit(WATCH_BEGAN, {"prefect.resource.id": "malaria.watch"})
    return done


def _automation(name: str, trigger: Json, text: str, block: str | None, *first: Json) -> Json:
    body = f'{{"alert": "{name}", "text": {{{{ ("malaria: {name}: " ~ text) | tojson }}}}}}'
    payload = f"{{% set text %}}{text}{{% endset %}}{body}"
    tell: Json = (
        {"type": "call-webhook", "block_document_id": block, "payload": payload} if block else {"type": "do-nothing"}
    )
    actions = [*first, tell]
    return {
        "name": PREFIX + name,
        "description": "See docs/operations.md, Alerts",
        "enabled": True,
        "trigger": trigger,
        "actions": actions,
        "tags": ["malaria-retraining", f"definition:{digest(trigger, actions)}"],
    }


def _seen(expect: set[str], match: Json, *, match_related: Json | None = None) -> Json:
    return {
        "type": "event",
        "posture": "Reactive",
        "expect": sorted(expect),
        "match": match,
        "match_related": match_related or {},
        "threshold": 1,
        "within": 0,
    }


def _missed(
    *, after: set[str], expect: set[str], seconds: float, match: Json, for_each: list[str] | None = None
) -> Json:
    return {
        "type": "event",
        "posture": "Proactive",
        "after": sorted(after),
        "expect": sorted(expect),
        "match": match,
        "for_each": for_each or [],
        "threshold": 1,
        "within": seconds,
    }


def _webhook_block(server: PrefectServer, settings: AlertSettings) -> str | None:
    """Return the id of the block that holds the webhook's address, brought in line with the settings."""
    if settings.webhook is None:
        return None
    data = {"url": settings.webhook.get_secret_value(), "headers": {"Content-Type": "application/json"}}
    kept = _kept_block(server)
    if kept is None:
        type_ = server.ask("GET", "/block_types/slug/webhook")["id"]
        schemas = server.ask("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [type_]}}})
        body = {"name": BLOCK, "block_type_id": type_, "block_schema_id": schemas[0]["id"], "data": data}
        return str(server.ask("POST", "/block_documents/", body)["id"])
    if {name: kept["data"].get(name) for name in data} != data:
        server.ask("PATCH", f"/block_documents/{kept['id']}", {"data": data, "merge_existing_data": True})
    return str(kept["id"])


def _kept_block(server: PrefectServer) -> Json | None:
    path = f"/block_types/slug/webhook/block_documents/name/{BLOCK}?include_secrets=true"
    found: Json | None = server.ask("GET", path, missing=None)
    return found


def _forget_webhook(server: PrefectServer) -> None:
    if (kept := _kept_block(server)) is not None:
        server.ask("DELETE", f"/block_documents/{kept['id']}")
