"""The documents' commands, settings and snippets: each is run, or parsed as it would be, or says why not.

A block that needs what no test has is preceded by ``<!-- not run: the reason -->``; the commands of ``retrain`` in it
are parsed all the same.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoSuchOption
from typer.main import get_command

from flows.cli.main import app
from infra.settings.secrets import FILE, variable
from infra.settings.settings import PREFIX, SECRETS, Settings, load_settings
from tests import ROOT
from tests.builders import plain_cells
from tests.nights import Nights
from tests.test_documents import DOCUMENTS
from validation.rules import Rules

BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\.venv/bin/)?retrain [a-z][^`\n]*)`")
VARIABLE = re.compile(r"RETRAIN_[A-Z][A-Z0-9_]*[A-Z0-9]")
# Variables that are read before there are settings.
EARLY = {"RETRAIN_CONFIG", "RETRAIN_HOME", "RETRAIN_INHERIT"}
LANGUAGES = {"bash", "ini", "python", "text", "toml"}
# How many python blocks a page has, and the test that runs all of them.
PYTHON = {
    "docs/how-to/serving.md": (1, "tests/tasks/commands/test_predict.py"),
    "docs/data.md": (1, "tests/validation/batch/test_project.py"),
    "docs/registry.md": (2, "tests/tasks/models/test_models.py"),
}
# Commands that are parsed and not run here, by their beginning.
PARSED = {
    "compare": "it needs two decisions with a look: tests/tasks/commands/test_compare_decisions.py",
    "approve": "no decision waits: tests/tasks/champion/",
    "demo": "it trains both CNNs: tests/flows/test_nights.py",
    "devices": "it loads both frameworks: tests/tasks/training/",
    "import s3://": "it needs a bucket: tests/tasks/intake/",
    "notify": "it needs a deployment: tests/flows/unattended/",
    "promote": "the champion is this challenger: tests/tasks/commands/",
    "rebuild-registry": "the registry is not lost: tests/tasks/champion/",
    "reject": "no decision waits: tests/tasks/champion/",
    "restore": "everything would be in its way: tests/infra/test_backup.py",
    "rollback": "there is no champion before this one: tests/tasks/commands/",
    "site --port": "it serves until it is stopped: tests/flows/cli/test_report.py",
    "up": "it runs until it is stopped: tests/flows/unattended/",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    reason: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> Iterator[tuple[dict[str, str], list[str]]]:
        """Yield a shell's commands: the variables before each, and its words up to a redirection or a pipe."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = list(itertools.takewhile(lambda word: word not in (">", "|"), words))
            words = words[1:] if words[:1] == ["export"] else words
            given = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, given[name] = words.pop(0).partition("=")
            yield given, words


def blocks(language: str = "") -> list[Block]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(path.relative_to(ROOT)), line, match[1] or "", match[2], match[3]))
    return [block for block in found if language in ("", block.language)]


def mentioned() -> dict[str, list[str]]:
    """Every command of ``retrain`` that a sentence names, as its text, with its arguments."""
    found = (shlex.split(code)[1:] for path in DOCUMENTS for code in INLINE.findall(BLOCK.sub("", path.read_text())))
    return {shlex.join(arguments): arguments for arguments in found}


def of_retrain() -> dict[str, list[str]]:
    """Every command of ``retrain`` in a block of the documents, as its text, with its arguments."""
    found = [words for block in blocks("bash") for _, words in block.commands()]
    ours = (words[1:] for words in found if words and words[0] in ("retrain", ".venv/bin/retrain"))
    return {shlex.join(arguments): arguments for arguments in ours}


def parse(arguments: list[str]) -> None:
    """Parse a command as the command line does, and carry nothing out."""
    group: Any = get_command(app)
    if arguments[0].startswith("--"):
        assert any(arguments[0] in option.opts for option in group.params), f"no option {arguments[0]}"
        return
    command = group.commands[arguments[0]]
    command.make_context(arguments[0], arguments[1:]).close()


def variables() -> set[str]:
    """The variables of all settings, of their groups, and of the files of secrets."""
    known = {f"{variable(PREFIX, path)}{FILE}" for path in SECRETS} | EARLY
    for name, field in Settings.model_fields.items():
        known.add(variable(PREFIX, (name,)))
        if isinstance(field.default, Rules):
            known |= {variable(PREFIX, (name, inner)) for inner in type(field.default).model_fields}
    return known


def test_every_block_says_what_it_is() -> None:
    assert len(blocks()) > 40
    for path in DOCUMENTS:
        assert path.read_text().count("\n```") == 2 * len([b for b in blocks() if ROOT / b.document == path]), path
    assert [str(block) for block in blocks() if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("text", of_retrain())
def test_a_command_is_understood_by_the_command_line(text: str) -> None:
    parse(of_retrain()[text])


@pytest.mark.parametrize("text", mentioned())
def test_a_command_in_a_sentence_is_one(text: str) -> None:
    # A sentence may name a command or an option without what belongs to it.
    with suppress(MissingParameter, BadOptionUsage):
        parse(mentioned()[text])


def test_what_the_command_line_does_not_know_is_found() -> None:
    for text in ("champoin", "champion --on today", "rollback", "predict", "--verzion"):
        with pytest.raises((KeyError, AssertionError, NoSuchOption, MissingParameter)):
            parse(text.split())


@pytest.mark.thorough
@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_other_commands_name_what_there_is(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text()
    read_by_make = makefile + (ROOT / "prefect.yaml").read_text()
    for given, words in block.commands():
        match words:
            case [] | ["retrain" | ".venv/bin/retrain", *_]:
                continue
            case ["make", target, *rest]:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE)
                given |= dict(word.split("=", 1) for word in rest)
                assert [name for name in given if name not in read_by_make and not name.startswith(PREFIX)] == []
            case ["python" | ".venv/bin/python", "-m", module, *rest] if (ROOT / module.split(".")[0]).is_dir():
                source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
                assert [option for option in rest if option.startswith("--") and option not in source] == []
            case ["mlflow", "server", *rest]:
                from mlflow.cli import cli

                cli.commands["server"].make_context("server", list(rest)).close()
            case _:
                assert block.reason, f"{block}: {shlex.join(words)} is neither run nor said not to be"


def test_every_variable_in_the_documents_is_one() -> None:
    known = variables()
    recipes = tuple(f"RETRAIN_TRAINING__{model}__" for model in ("FASTAI", "KERAS"))
    for path in DOCUMENTS:
        for name in set(VARIABLE.findall(path.read_text())):
            assert name in known or name.startswith(recipes) or any(k.startswith(f"{name}__") for k in known), (
                path,
                name,
            )


def test_every_setting_in_the_documents_is_one() -> None:
    groups = {
        name: type(f.default).model_fields for name, f in Settings.model_fields.items() if isinstance(f.default, Rules)
    }
    named = re.compile(rf"`({'|'.join(groups)})\.(\w+)`")
    found = {(*match, path.name) for path in DOCUMENTS for match in named.findall(path.read_text())}
    assert len(found) > 20
    assert [(group, name, page) for group, name, page in found if name not in groups[group]] == []


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_settings_file_is_read(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "retrain.toml").write_text(block.text)
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path))
    load_settings()


def test_every_python_block_has_a_test_that_runs_it() -> None:
    assert Counter(block.document for block in blocks("python")) == {page: count for page, (count, _) in PYTHON.items()}
    for page, (_, path) in PYTHON.items():
        test = (ROOT / path).read_text()
        assert "```python" in test
        assert f'"{Path(page).name}"' in test


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path, prefect_url: str) -> Iterator[Nights]:
    made = Nights(tmp_path_factory.mktemp("nights"), empty_registry, PREFECT_API_URL=prefect_url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(nights: Nights) -> Path:
    """A home after a night, by the documents' own command, and what their commands name, beside it."""
    made = nights.home("home")
    told = nights.run(made, "run")
    assert told.code == 0, told.err
    beside = nights.folder / "beside"
    for key, data in plain_cells(2, 2).items():
        for folder in ("cells", "new-cells", "folder"):
            path = beside / folder / Path(*Path(key).parts[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    images = sorted((beside / "cells").rglob("*.png"))
    (beside / "images").mkdir()
    rows = ["file,stage"]
    for number, image in enumerate(images):
        (beside / "images" / f"{number}{image.name}").write_bytes(image.read_bytes())
        rows.append(f"{number}{image.name},{int(image.parent.name == 'Parasitized')}")
    (beside / "labels.csv").write_text("\n".join(rows) + "\n")
    (beside / "cell.png").write_bytes(images[0].read_bytes())
    return made


@pytest.mark.server
@pytest.mark.slow
def test_what_can_be_run_runs(nights: Nights, seen: Path) -> None:
    beside = nights.folder / "beside"
    placeholders = ("...", "DECISION", "ID", "TEXT", "N", "FOLDER", "COMMAND", "PATH")
    ran = set()
    for text, arguments in of_retrain().items():
        if text.startswith(tuple(PARSED)) or set(arguments) & set(placeholders):
            continue
        given = [str(beside / word) if (beside / word).exists() else word for word in arguments]
        given = [str(nights.folder / "backup") if word.startswith("/backups/") else word for word in given]
        given += ["--build-only"] if text == "site" else []
        given = [word.replace("2026-01-31 12:00", "2100-01-31 12:00") for word in given]
        told = nights.run(seen, *given)
        assert told.code == 0, (text, told.err)
        ran.add(arguments[0])
    assert ran >= {
        "backup",
        "champion",
        "history",
        "import",
        "looks",
        "predict",
        "prune",
        "quarantine",
        "report",
        "run",
    }
    assert ran >= {"settings", "site", "validate"}
