"""Real processes that change the champion or take looks at once, or are killed with SIGKILL while they do it.

As a program it reads jobs from standard input, one list of jobs a line, and forks one process for each job of a line:
what is slow, importing MLflow, happens once. A job may name a function; its process then kills itself just before, or
just after, that function's call. With ``together`` all processes of a line reach the deciding write before any does it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import ROOT


class Outcome(NamedTuple):
    """How a process ended: the signal that killed it, or what it said."""

    signal: int
    said: str
    version: str


class Rivals:
    """The program below, running."""

    def __init__(self, empty_registry: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.rivals", str(empty_registry)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *jobs: dict[str, Any], together: bool = False) -> list[Outcome]:
        """Run jobs at once and wait for all of them."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"jobs": jobs, "together": together}) + "\n")
        self._process.stdin.flush()
        return [Outcome(*outcome) for outcome in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """End the program."""
        with self._process as process:
            assert process.stdin
            process.stdin.close()
            process.wait(timeout=300)


def promotion(
    settings: dict[str, Any], decision: str, *, kill: tuple[str, str] | None = None, identity: dict[str, str]
) -> dict[str, Any]:
    """Return the job of carrying out a stored decision under ``settings``; ``identity`` goes to the environment."""
    return {"settings": settings, "decision": decision, "kill": kill, "identity": identity}


def looking(settings: dict[str, Any], challengers: Sequence[str], identity: dict[str, str]) -> dict[str, Any]:
    """Return the job of taking a look for each challenger; it says a JSON list of looks, None for a refused one."""
    return {"settings": settings, "looks": challengers, "kill": None, "identity": identity}


def _wrap(dotted: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function, or a method of a class, by what ``around`` makes of it."""
    path, _, name = dotted.rpartition(".")
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    setattr(owner, name, around(getattr(owner, name)))


def _killing(when: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*args: Any, **kwargs: Any) -> Any:
            if when == "after":
                function(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        return killed

    return around


def _waiting(ready: int, go: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wait once, at the first call."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        waited: list[int] = []

        def waits(*args: Any, **kwargs: Any) -> Any:
            if not waited:
                waited.append(os.write(ready, b"."))
                os.read(go, 1)
            return function(*args, **kwargs)

        return waits

    return around


def _promote(job: dict[str, Any]) -> tuple[str, str]:
    from infra.registry.registry import Registry
    from infra.settings.settings import Settings
    from tasks.context import Context
    from tasks.promote import promote
    from validation.errors import RetrainError
    from validation.records import Candidate, Decision

    settings = Settings(**job["settings"])
    context = Context.open(settings)
    decision = context.records.load(Decision, job["decision"])
    challenger = context.records.load(Candidate, decision.challenger or "")
    try:
        champion = promote(context, decision, challenger, Registry(settings), f"process {os.getpid()}")
    except RetrainError as error:
        return f"{type(error).__name__}: {error.message}", ""
    return "promoted", champion.version if champion else ""


def _look(job: dict[str, Any]) -> tuple[str, str]:
    from infra.registry.registry import Registry
    from infra.settings.settings import Settings
    from tasks.context import Context
    from tasks.judging.ledger import take_look
    from validation.errors import LedgerSpent

    settings = Settings(**job["settings"])
    context, registry = Context.open(settings), Registry(settings)
    taken: list[dict[str, Any] | None] = []
    for challenger in job["looks"]:
        try:
            taken.append(take_look(context, registry, challenger, "champion").model_dump(mode="json"))
        except LedgerSpent:
            taken.append(None)
    return json.dumps(taken), ""


def _fork(job: dict[str, Any], barrier: tuple[int, int] | None) -> tuple[int, int]:
    """Start a job in a process of its own; return its number and the pipe that it answers by."""
    answer, telling = os.pipe()
    pid = os.fork()
    if pid:
        os.close(telling)
        return pid, answer
    try:
        os.environ.update(job["identity"])
        if job["kill"]:
            name, when = job["kill"]
            _wrap(name, _killing(when))
        if barrier:
            _wrap("infra.registry.registry.Registry.put_if_absent", _waiting(*barrier))
        # A clean process of its own for each would take longer than all the rest; it is tested by itself.
        # So is the evidence, which these decisions do without.
        _wrap("tasks.promote._refuse_other_evidence", lambda _: lambda *_, **__: None)
        _wrap("tasks.champion.reproduce.rescore", lambda _: lambda *_, **__: __import__("numpy").zeros(1, "float32"))
        os.write(telling, json.dumps(_look(job) if "looks" in job else _promote(job)).encode())
    except BaseException as error:
        os.write(telling, json.dumps((f"{type(error).__name__}: {error}", "")).encode())
    finally:
        os._exit(0)


def _run(jobs: list[dict[str, Any]], together: bool) -> list[Outcome]:
    (waiting, ready), (go, start) = os.pipe(), os.pipe()
    running = [_fork(job, (ready, go) if together else None) for job in jobs]
    there = 0
    while together and there < len(jobs):
        # Everybody is there, or somebody has said already why not.
        found, _, _ = select.select([waiting, *(answer for _, answer in running)], [], [], 300)
        if not found or waiting not in found:
            break
        there += len(os.read(waiting, 1))
    os.write(start, b"." * len(jobs))
    outcomes = []
    for pid, answer in running:
        with os.fdopen(answer, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        said, version = json.loads(text) if text else ("", "")
        outcomes.append(Outcome(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, said, version))
    for end in (waiting, ready, go, start):
        os.close(end)
    return outcomes


def _warm_up(empty_registry: Path) -> None:
    """Promote once in a registry that is thrown away, so that every fork has imported all that it takes."""
    from tests.builders import channel_model, made_up_candidate, made_up_decision, registry_in

    with tempfile.TemporaryDirectory() as folder:
        registry = registry_in(Path(folder), empty_registry)
        model = channel_model()
        registry.set_champion(registry.register(made_up_candidate(model), model, made_up_decision()).version)
        champion = registry.champion()
        assert champion is not None
        registry.model_bytes(champion)


if __name__ == "__main__":
    import tasks.promote  # noqa: F401

    _warm_up(Path(sys.argv[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(_run(asked["jobs"], asked["together"])) + "\n")
        sys.stdout.flush()
