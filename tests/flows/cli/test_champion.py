"""The commands about the champion as their user sees them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import console
from flows.cli.champion import moment
from infra.provenance import person
from infra.registry.registry import Registry
from infra.settings.settings import Settings
from infra.store.keys import report_key
from tasks.champion.approval import request_approval
from tasks.context import Context
from tasks.promote import promote
from tests.builders import channel_model, made_up_candidate, made_up_decision, registry_in
from tests.flows.cli.test_main import retrain
from validation.errors import UsageError
from validation.records import ChampionRef, Decision, Verdict

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("evidence_believed")]

COMMANDS = ("history", "rollback", "promote", "approve", "reject")


@pytest.fixture
def context(home: Path) -> Context:
    made = Context.open(Settings(home=home))
    (home / "store").mkdir(parents=True)
    return made


@pytest.fixture
def champions(context: Context, home: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch) -> list[ChampionRef]:
    """Two champions that nights promoted."""
    monkeypatch.setattr("tasks.promote.reproduce", lambda *_, **__: "tried")
    registry: Registry = registry_in(home, empty_registry)
    line: list[ChampionRef] = []
    for number in (1, 2):
        decision = decide(context, number, line[-1] if line else None)
        candidate = made_up_candidate(channel_model(), id_=decision.challenger or "")
        champion = promote(context, decision, candidate, registry, "the night")
        assert champion is not None
        line.append(champion)
    return line


def decide(context: Context, number: int, before: ChampionRef | None, verdict: Verdict = Verdict.PROMOTED) -> Decision:
    candidate = made_up_candidate(channel_model(), id_=f"c{number:023d}")
    context.store.put(candidate.model_key, channel_model())
    context.records.save(candidate, candidate.id)
    decision = made_up_decision(f"{number}" * 24, before=before, verdict=verdict)
    decision = decision.model_copy(update={"challenger": candidate.id})
    context.records.save(decision, decision.id)
    return decision


class Shown:
    """Runs a command and returns its output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.told = ""

    def json(self, *arguments: str) -> Any:
        assert retrain(self._monkeypatch, *arguments, "--json") == 0
        return json.loads(self._capsys.readouterr().out)

    def text(self, *arguments: str, code: int = 0) -> str:
        assert retrain(self._monkeypatch, *arguments) == code
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        self.told = shown.err
        return shown.err if code else shown.out


@pytest.fixture(autouse=True)
def no_handlers_of_other_tests() -> Iterator[None]:
    """Remove the log handlers of a command, which in production end with its process."""

    def forget() -> None:
        for name in console.PACKAGES:
            logger = logging.getLogger(name)
            logger.propagate = True
            for handler in list(logger.handlers):
                logger.removeHandler(handler)

    forget()
    yield
    forget()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    monkeypatch.setenv("COLUMNS", "200")
    return Shown(monkeypatch, capsys)


def test_every_command_explains_itself(shown: Shown) -> None:
    for command in COMMANDS:
        text = shown.text(command, "--help")
        assert f"retrain {command}" in text
        assert "--json" in text
        assert ("--why" in text) == (command != "history")
    assert "--at" in shown.text("champion", "--help")


def test_a_reason_is_never_optional(shown: Shown) -> None:
    for command in (["rollback"], ["promote", "latest"], ["approve", "latest"], ["reject", "latest"]):
        assert "--why" in shown.text(*command, code=2)


def test_before_the_first_night_every_command_says_what_is_missing(
    shown: Shown, context: Context, home: Path, empty_registry: Path
) -> None:
    registry_in(home, empty_registry)
    assert shown.json("history") == []
    assert "no champion before this one" in shown.text("rollback", "--why", "w", code=2)
    assert "no night has come to a decision" in shown.text("promote", "latest", "--why", "w", code=2)
    assert "no decision waits" in shown.text("approve", "latest", "--why", "w", code=2)
    assert "no champion at 2026-01-01 00:00:00 UTC" in shown.text("champion", "--at", "2026-01-01", code=2)


def test_history_champion_at_and_rollback(shown: Shown, context: Context, champions: list[ChampionRef]) -> None:
    context.store.put(report_key("2" * 24), b"<html>")
    first, second = shown.json("history")
    assert (first["number"], first["action"], first["from"], first["to"]) == (1, "promoted", None, "1")
    assert (second["who"], second["why"], second["decision"]) == ("the night", "It was promoted", "2" * 24)
    assert (second["checked"], first["report"]) == ("tried", None)
    assert second["report"].endswith(f"retraining/reports/{'2' * 24}.html")

    rolled = shown.json("rollback", "--why", "ring forms are missed")
    assert (rolled["action"], rolled["champion"]["version"]) == ("rollback", "1")
    *before, last = shown.json("history")
    assert before == [first, second]
    assert (last["action"], last["from"], last["to"]) == ("rollback", "2", "1")
    assert (last["who"], last["why"]) == (person(), "ring forms are missed")
    assert "ring forms are missed" in shown.text("history")

    now = shown.json("champion")
    assert (now["version"], now["action"], now["who"]) == ("1", "rollback", person())
    between = datetime.fromisoformat(context_entry(context, 2)) + timedelta(microseconds=1)
    then = shown.json("champion", "--at", between.isoformat())
    assert (then["version"], then["action"], then["uri"]) == ("2", "promoted", "models:/malaria-cell/2")
    assert "no champion at" in shown.text("champion", "--at", "2020-01-31 12:00", code=2)
    assert "is not a valid time" in shown.text("champion", "--at", "yesterday", code=2)


def context_entry(context: Context, number: int) -> str:
    return str(json.loads(context.store.get(f"retraining/history/{number:06d}.json"))["at"])


def test_a_reason_can_neither_act_on_the_terminal_nor_forge_a_line(shown: Shown, champions: list[ChampionRef]) -> None:
    del champions
    why = "seen\x1b[1A\x1b[2K\n2026-01-01 00:00:00 UTC  promoted: version 1 -> 2"
    shown.text("rollback", "1", "--why", why)
    printed = shown.text("history")
    assert printed.isascii()
    assert "\x1b" not in printed
    assert r"why       seen\x1b[1A\x1b[2K\n2026-01-01" in printed
    assert [row["why"] for row in shown.json("history")][-1] == why
    assert r"\x1b[1A" in shown.text("champion")


def test_promote_approve_and_reject(
    shown: Shown, context: Context, champions: list[ChampionRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(context, 3, champions[-1], Verdict.KEPT)
    promoted = shown.json("promote", "333", "--why", "the holdout is worn out")
    assert promoted["champion"]["version"] == "3"
    assert shown.json("champion")["action"] == "override"
    waiting = [decide(context, number, shown_champion(shown), Verdict.AWAITING_APPROVAL) for number in (4, 5)]
    for decision in waiting:
        request_approval(context, decision)
    rejected = shown.json("reject", "4444", "--why", "too few patients")
    assert (rejected["answer"]["answer"], rejected["answer"]["who"]) == ("reject", person())
    for name in (" ", "x" * 101):
        assert "--name" in shown.text("approve", "latest", "--why", "w", "--name", name, code=2)
    approved = shown.json("approve", "latest", "--why", "looked at the report", "--name", " Ann\tB ")
    assert approved["champion"]["version"] == "4"
    assert approved["answer"]["who"] == shown.json("history")[-1]["who"] == f"Ann B, {person()}"
    text = shown.text("approve", "5555", "--why", "again", code=1)
    assert f"was approved by Ann B, {person()}" in text
    assert [row["action"] for row in shown.json("history")][2:] == ["override", "rejected", "approved"]


def shown_champion(shown: Shown) -> ChampionRef:
    facts = shown.json("champion")
    return ChampionRef(**{name: facts[name] for name in ("version", "candidate", "model", "model_sha256", "threshold")})


def test_a_damaged_history_is_one_clear_line(shown: Shown, context: Context, champions: list[ChampionRef]) -> None:
    context.store.put("retraining/history/000002.json", b'{"number": 2')
    for command in (["history"], ["champion"], ["rollback", "--why", "w"]):
        assert "retraining/history/000002.json" in shown.text(*command, code=1)


def test_a_flipped_bit_in_the_history_is_never_shown_as_the_truth(
    shown: Shown, context: Context, champions: list[ChampionRef], home: Path
) -> None:
    del champions
    key = "retraining/history/000001.json"
    whole = context.store.get(key)
    context.store.put(key, whole.replace(b'"who": "the night"', b'"who": "thd night"'))
    assert context.store.get(key) != whole
    for command in ("history", "champion"):
        told = shown.text(command, code=1)
        assert f"{key} in {context.store.uri} was changed" in told
        assert f"move {key} away" in told
    context.store.put(key, whole)
    (home / "mlflow.db").rename(home / "away.db")
    (home / "mlflow.db").mkdir()  # it cannot be opened
    assert "by the night" in shown.text("history")
    assert "not compared with the registry, which does not answer" in shown.told


def test_a_tampered_champion_answers_no_image(
    shown: Shown, context: Context, champions: list[ChampionRef], home: Path
) -> None:
    for file in (home / "mlflow-artifacts").rglob("*.onnx"):
        file.write_bytes(channel_model(centre=7))
    (home / "cell.png").write_bytes(b"never looked at")
    assert "is not what was judged" in shown.text("predict", str(home / "cell.png"), code=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-31 12:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00:30Z", datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)),
        ("2026-01-31T14:00+02:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (None, None),
    ],
)
def test_a_time_is_read_in_iso_8601(text: str | None, value: datetime | None) -> None:
    assert moment(text) == value


def test_an_invalid_time_is_refused() -> None:
    for text in ("", "soon", "31.1.2026", "2026-13-01"):
        with pytest.raises(UsageError, match="is not a valid time"):
            moment(text)
