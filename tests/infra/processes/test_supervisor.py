"""Services: started again when they end, the later the more often; their logs do not fill the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes import supervisor as module
from infra.processes.parent import tagged_processes
from infra.processes.supervisor import Supervisor
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough

CODE = {
    "stays": "import time\nprint('up', flush=True)\ntime.sleep(600)\n",
    "ends": "print('I have had enough', flush=True)\nraise SystemExit(3)\n",
    "deaf": "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)\n",
}


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    for name, code in CODE.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Supervisor(tmp_path / "logs")
    yield made
    made.close()
    assert tagged_processes(made.mark) == []


def wait(true: object, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if callable(true) and true():
            return
        time.sleep(0.05)
    raise AssertionError("not in time")


def test_one_that_is_killed_is_started_again(services: Supervisor) -> None:
    service = services.start("worker", ["stays"], dict(os.environ))
    wait(lambda: "up" in service.log.read_text())
    assert service.process
    first = service.process.pid
    service.process.kill()
    service.process.wait()
    services.supervise_once()
    assert service.process is None  # not at once: it may be ill
    wait(lambda: services.supervise_once() or service.process is not None)
    assert service.process.pid != first
    wait(lambda: service.log.read_text().count("up") == 2)


def test_one_that_keeps_ending_is_left_longer_and_longer(services: Supervisor) -> None:
    service = services.start("worker", ["ends"], dict(os.environ))
    for seconds in (1, 2, 4):
        assert service.process
        service.process.wait()
        before = time.monotonic()
        services.supervise_once()
        assert before + seconds <= service.again_at <= time.monotonic() + seconds
        service.again_at = 0.0
        services.supervise_once()


def test_one_that_does_not_start_is_an_error_with_its_last_word(services: Supervisor) -> None:
    service = services.start("server", ["ends"], dict(os.environ))
    with pytest.raises(RetrainError, match="server did not start: I have had enough") as caught:
        services.wait(service, lambda: False, 300)
    assert str(service.log) in caught.value.hint


def test_one_that_does_not_listen_is_ended_all_the_same(services: Supervisor) -> None:
    service = services.start("deaf", ["deaf"], dict(os.environ))
    wait(lambda: "up" in service.log.read_text())
    process = service.process
    assert process
    services.stop(["deaf"], grace=0.2)
    assert process.poll() == -9
    services.supervise_once()
    assert service.process is process  # what was stopped is not started again


def test_a_large_log_is_rotated_and_still_written_to(services: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    service = services.start("worker", ["stays"], dict(os.environ))
    wait(lambda: "up" in service.log.read_text())
    monkeypatch.setattr(module, "LARGEST_LOG", 2)
    services.supervise_once()
    assert service.log.read_text() == ""
    assert "up" in service.log.with_suffix(".log.1").read_text()
