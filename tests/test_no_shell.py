"""Nothing from outside (a key, a class, a patient's name) reaches a shell or a format string: there is none."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deploy.kubernetes.make import template
from tests import ROOT
from tests.test_house import sources

SHELLS = {
    "system",
    "popen",
    "getoutput",
    "getstatusoutput",
    "spawnl",
    "spawnlp",
    "spawnv",
    "spawnvp",
    "execl",
    "execlp",
}
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "deploy" / "compose.yaml").read_text())


def mistakes(code: str) -> Iterator[str]:
    """Yield each call in ``code`` that a shell, or a format string made of data, may stand behind."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SHELLS or name in {"eval", "exec", "create_subprocess_shell"}:
            if isinstance(node.func, ast.Attribute) and not node.args:
                continue  # a model's eval()
            yield f"{name}() in line {node.lineno}"
        if any(keyword.arg == "shell" for keyword in node.keywords):
            yield f"shell= in line {node.lineno}"
        if name in {"run", "Popen", "check_output", "check_call", "call"} and node.args:
            first = node.args[0]
            # A command is a list: one text would be cut into words, or handed to a shell.
            if isinstance(first, ast.JoinedStr) and ast.unparse(node.func).startswith("subprocess"):
                yield f"a command as one text in line {node.lineno}"
        if name == "format" and isinstance(node.func, ast.Attribute):
            text = node.func.value
            names = {"self", "super()"}  # a log handler's own
            named = (isinstance(text, ast.Name) and text.id.isupper()) or ast.unparse(text) in names
            if not (isinstance(text, ast.Constant) or named):
                yield f"a format string that is no constant in line {node.lineno}"
        logs = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in {"log", "logger", "logging"}
        if logs and name in {"debug", "info", "warning", "error", "exception"} and len(node.args) > 1:
            # With nothing to fill in, logging takes a text as it is.
            first = node.args[0]
            if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
                yield f"a log line whose format is no constant in line {node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_hands_data_to_a_shell_or_takes_it_as_a_format(path: Path) -> None:
    assert list(mistakes(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('ls ' + key)",
        "os.popen(key)",
        "subprocess.run(f'ls {key}')",
        "subprocess.run(['ls'], shell=True)",
        "subprocess.Popen('ls', shell=flag)",
        "subprocess.getoutput(key)",
        "asyncio.create_subprocess_shell(key)",
        "eval(key)",
        "key.format(patient)",
        "log.info(key, patient)",
        "log.info(f'found {key} %s', patient)",
    ],
)
def test_such_a_mistake_would_be_found(code: str) -> None:
    assert list(mistakes(code))


def words(command: Any) -> list[str]:
    assert isinstance(command, list), f"one text, which compose or a shell cuts into words: {command!r}"
    return [str(word) for word in command]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_value_reaches_a_shell_in_the_compose_file(name: str) -> None:
    service = COMPOSE["services"][name]
    for command in (
        service.get("entrypoint", []),
        service.get("command", []),
        service.get("healthcheck", {}).get("test", []),
    ):
        if {"sh", "bash", "-c", "CMD-SHELL"} & set(words(command)):
            assert "$" not in json.dumps(command), name


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_no_value_reaches_a_shell_in_a_job_template(pool: str) -> None:
    text = json.dumps(template(pool)["job_configuration"])
    assert '"sh"' not in text
    assert "/bin/sh" not in text


def test_a_folder_with_a_nasty_name_is_only_a_name_to_make(tmp_path: Path) -> None:
    """`make run CELLS=... WITH=...` with everything in them that a shell would act on."""
    nasty = "$(touch hacked)`touch hacked`; touch hacked \"quoted\" 'too'"
    script = tmp_path / ".venv" / "bin" / "retrain"
    script.parent.mkdir(parents=True)
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > told\n')
    script.chmod(0o755)
    # Stands for the Python that installs.
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > installed\n')
    python.chmod(0o755)
    words = {"CELLS": nasty.replace("$", "$$"), "WITH": nasty.replace("$", "$$"), "PYTHON": str(python)}
    command = ["make", "-f", str(ROOT / "Makefile"), "run", *(f"{name}={word}" for name, word in words.items())]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told").read_text().splitlines() == ["demo", "--cells", nasty]
    assert (tmp_path / "installed").read_text().splitlines()[-2:] == ["--with", nasty]
    assert not (tmp_path / "hacked").exists()
