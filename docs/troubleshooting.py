"""Prints docs/troubleshooting.md, from the errors in the code.

``python -m docs.troubleshooting > docs/troubleshooting.md``. The source is parsed and not run: every place that makes
an error of ``validation/errors.py``, or of a class derived from one, gives its message and its hint, with names in
place of what is known only then. So does every ``ValueError`` of a setting's check, and every end of `make install`.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra import report_server
from infra.store import refusals
from validation import errors
from validation.findings import REASONS

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("flows", "tasks", "infra", "validation")
# Where a message comes from, by the beginning of the module's path; the first that fits counts.
AREAS = {
    "Settings and secrets": ("infra/settings/",),
    "Importing cells": ("tasks/intake/",),
    "The object store and its records": ("infra/store/", "tasks/snapshots/"),
    "The data of a night": ("tasks/pull", "tasks/pack", "tasks/cells/", "tasks/commands/inspect_data"),
    "Trainings": ("flows/retrain", "flows/train", "tasks/training/", "tasks/train", "tasks/combine", "tasks/models/"),
    "Champion, promotions and approvals": (
        *("tasks/champion/", "tasks/promote", "tasks/judging/", "tasks/evaluate", "flows/promote"),
        *("flows/cli/champion", "tasks/commands/rollback", "tasks/commands/answer_approval"),
    ),
    "The registry and model files": ("infra/registry/", "infra/scoring/", "tasks/commands/rebuild_registry"),
    "Predictions, reports and pruning": (
        *("tasks/commands/predict", "tasks/report", "tasks/nights", "tasks/pruning/", "flows/cli/prune"),
        *("tasks/commands/compare_decisions", "infra/report_server"),
    ),
    "Running unattended": ("flows/unattended/", "infra/prefect_", "infra/bucket_events", "infra/local/up_lock"),
    "Backups": ("infra/backup",),
    "This machine": ("flows/", "infra/"),
}
# Where a ``ValueError`` is what a person reads: the check of a setting, and what `make install` was given.
REFUSED = ("infra/settings/", "validation/rules")
INSTALLING = ("infra/deploy/install",)
# A message that is another error's own, handed on.
HANDED_ON = "<message>"
_SEVERAL = "; or: "
_SAME = "what the message itself says"
_WORDS = {
    **dict.fromkeys(("error", "strerror", "why", "answer", "first line"), "reason"),
    **{"uri": "address", "shown": "address", "found": "what was found", "self": "plan", "state": "what is missing"},
}

_INTRODUCTION = """\
# Troubleshooting: every message and what to do

This page is generated from the code: change a message where it is raised, then run
`python -m docs.troubleshooting > docs/troubleshooting.md`.

A command that cannot do what was asked ends with a line that begins with `error:`, a second line that says what to do,
and an exit code. Search this page for a few fixed words of the message. `<name>` stands for what differs from case to
case, `[...]` for a part that is not always there. [faults.md](faults.md) says what happens to a night when something is
killed, full or away, and [reports.md](reports.md) what the verdict of a night means. A command or an option that does
not exist, or lacks its argument, is answered with its usage and exit code 2: see `retrain COMMAND --help`.

| exit code | meaning |
|---|---|
| 0 | done, whatever the verdict |
| 1 | any other error |
| 2 | a wrong argument or setting; nothing was started |
| 3 | the data must not be trained on, or images could not be read |
| 4 | the object store, the registry or Prefect cannot be reached, or refuses |
"""

_SETTINGS = """\
## Why a setting is refused

The message is `setting <name> = <value>: <reason> (environment: <variable>; file: <file>)`. Correct the value where it
was set; [settings.md](settings.md) has every setting. A value of another type or out of bounds is refused in pydantic's
words (`Input should be ...`), which say what was expected.

| reason |
|---|"""

_INSTALL = """
## What `make install` ends with

Each message says what to correct; the exit code is 1.

| message |
|---|"""

_IMAGES = """
## Why an image is named

`retrain quarantine` lists the images of the newest night. A cost (`reject`, `warn`, `stop` the night) can be changed by
`data.severities` ([settings.md](settings.md)); [data.md](data.md) has the rules.

| reason | costs | meaning | what to do |
|---|---|---|---|"""


@dataclass(frozen=True)
class Message:
    """One place in the code that makes an error."""

    path: str
    line: int
    error: str
    text: str
    hint: str

    @property
    def is_error(self) -> bool:
        """Whether it is one of the errors of ``validation/errors.py``, and not a plain ``ValueError`` or the end."""
        return self.error in kinds()

    @property
    def area(self) -> str:
        """The heading that it belongs under."""
        return next(area for area, paths in AREAS.items() if self.path.startswith(paths))

    @property
    def exit_code(self) -> int:
        """What a command ends with."""
        code: int = getattr(errors, kinds()[self.error]).exit_code
        return code


@functools.cache
def kinds() -> dict[str, str]:
    """Return every class of error by its name, with that of ``validation/errors.py`` which it is or is made from."""
    known = {name: name for name in errors.__all__}
    for path in sources():
        for node in ast.walk(_module(path).tree):
            if isinstance(node, ast.ClassDef) and (base := next((b for b in map(_name, node.bases) if b in known), "")):
                known.setdefault(node.name, known[base])
    return known


@functools.cache
def messages() -> tuple[Message, ...]:
    """Return every message of the code, in the order of the source."""
    return tuple(message for path in sources() for message in _module(path).messages())


def sources() -> list[Path]:
    """Return the modules that can raise one."""
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def reference() -> str:
    """Return the page, in Markdown."""
    found = [message for message in messages() if message.is_error and message.text != HANDED_ON]
    lines = [_INTRODUCTION]
    for area in AREAS:
        rows = sorted({(m.text, m.hint, m.exit_code) for m in found if m.area == area})
        lines += [f"## {area}\n\n| message | what to do | exit code |\n|---|---|---|"]
        lines += [f"| {_code(text)} | {plain(hint)} | {code} |" for text, hint, code in rows]
        lines += [""]
    lines += [_SETTINGS, *(f"| {_code(text)} |" for text in _plain_messages(REFUSED))]
    lines += [_INSTALL, *(f"| {_code(text)} |" for text in _plain_messages(INSTALLING)), ""]
    lines += ["## What the site of the reports answers\n\n| status | message | what to do |\n|---|---|---|"]
    lines += [f"| {s.value} | {_code(text)} | {plain(hint)} |" for s, (text, hint) in report_server.REFUSALS.items()]
    lines += ["\n## What a bucket's server refuses\n\nThe server's own code stands in the message.\n"]
    lines += ["| code | what to do |\n|---|---|"]
    hints: dict[str, list[str]] = {}
    for code, hint in refusals._HINTS.items():
        hints.setdefault(hint, []).append(f"`{code}`")
    lines += [f"| {', '.join(codes)} | {plain(hint)} |" for hint, codes in hints.items()]
    lines += [f"| codes that begin with `KMS` | {plain(refusals._KEY)} |"]
    lines += [f"| any other | {plain(refusals._POLICY)} |", _IMAGES]
    for name, reason in REASONS.items():
        lines += [f"| {name} | {reason.severity} | {plain(reason.meaning)} | {plain(reason.advice)} |"]
    return "\n".join(lines) + "\n"


def _plain_messages(paths: tuple[str, ...]) -> list[str]:
    """Return the texts of what is not one of our errors in some modules."""
    return sorted({m.text for m in messages() if m.path.startswith(paths) and not m.is_error})


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{_one_line(text)}{fence}"


def plain(text: str) -> str:
    """Return prose as Markdown: placeholders as code, unless they stand in code already."""
    parts = _one_line(text).split("`")
    parts[::2] = [re.sub(r"([\w./=-]*<[\w ]+>)+([/_=][\w./-]*)?", r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


class _Module:
    """A module's constants, imports and functions, and the errors that it makes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path.relative_to(ROOT))
        self.tree = ast.parse(path.read_text())
        self.constants: dict[str, ast.expr] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self.functions = {f.name: f for f in ast.walk(self.tree) if isinstance(f, ast.FunctionDef)}
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.constants[statement.targets[0].id] = statement.value
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                self.imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}

    def messages(self) -> Iterator[Message]:
        for scope, call in _calls(self.tree):
            if (name := _name(call.func)) in kinds() or self._ends_plainly(name, call):
                for text, hint in self._worded(call, scope):
                    texts, hints = text.split(_SEVERAL), hint.split(_SEVERAL)
                    pairs = zip(texts, hints, strict=True) if len(texts) == len(hints) else ((t, hint) for t in texts)
                    for each, what_to_do in pairs:
                        whole = each.removeprefix("[").removesuffix("]") if re.fullmatch(r"\[[^]]*\]", each) else each
                        yield Message(self.path, call.lineno, name, whole, what_to_do)

    def _ends_plainly(self, name: str, call: ast.Call) -> bool:
        """Whether a call makes a text that a person reads, and none of our errors."""
        named = {"ValueError": REFUSED + INSTALLING, "SystemExit": INSTALLING}.get(name, ())
        return self.path.startswith(named) and bool(call.args) and not isinstance(call.args[0], ast.Call)

    def _worded(self, call: ast.Call, scope: ast.FunctionDef | None) -> Iterator[tuple[str, str]]:
        """Yield message and hint; of a function that is given its message, one for each call of it."""
        first = call.args[0]
        parameters = [a.arg for a in scope.args.args if a.arg != "self"] if scope else []
        hint = call.args[1] if len(call.args) > 1 else ast.Constant("")
        if scope is not None and isinstance(first, ast.Name) and first.id in parameters:
            for inner, given in _calls(self.tree):
                if _name(given.func) == scope.name:
                    yield self._text(given.args[parameters.index(first.id)], inner), self._text(hint, scope)
        else:
            yield self._text(first, scope), self._text(hint, scope)

    def _text(self, node: ast.expr, scope: ast.FunctionDef | None) -> str:  # noqa: PLR0911, PLR0912
        """Return what an expression comes to, as far as the source says it."""
        match node:
            case ast.Constant(value):
                return str(value)
            case ast.JoinedStr(values):
                return "".join(self._text(value, scope) for value in values)
            case ast.FormattedValue(ast.Name(name)) if known := self._constant(name):
                return known.removesuffix(".0")
            case ast.FormattedValue(ast.Name("hint" | "rollback" as name)) if known := self._assigned(name, scope):
                return known
            case ast.FormattedValue(ast.BinOp(ast.Constant(str(plural)), ast.Mult())):
                return f"[{plural}]"
            case ast.FormattedValue(ast.BinOp(left, ast.Div(), ast.Constant(str(inside)))):
                return f"<{_placeholder(left)}>/{inside}"
            case ast.FormattedValue(value):
                return f"<{_placeholder(value)}>"
            case ast.BinOp(left, ast.Add(), right):
                return self._text(left, scope) + self._text(right, scope)
            case ast.IfExp(_, body, orelse):
                either = [self._text(body, scope), self._text(orelse, scope)]
                return f"[{either[0]}]" if not either[1] else _SEVERAL.join(dict.fromkeys(either))
            case ast.Name(name) if (known := self._constant(name)) or (known := self._assigned(name, scope)):
                return known
            case ast.Attribute(_, "message"):
                return HANDED_ON
            case ast.Call(ast.Attribute(ast.Constant(), "join"), [(ast.GeneratorExp() | ast.Name()) as text]):
                return self._text(text, scope)
            case ast.Call(ast.Attribute(text, "rstrip")) | ast.ListComp(text) | ast.GeneratorExp(text):
                return self._text(text, scope)
            case ast.Call(func) if _name(func) == "hint":
                return "see [What a bucket's server refuses](#what-a-buckets-server-refuses)"
            case ast.Call(ast.Name(name)) if known := self._returned(name):
                return known
        return f"<{word}>" if (word := _placeholder(node)) != "hint" else _SAME

    def _constant(self, name: str) -> str:
        """Return the text of a constant of this module or of one that it is imported from; else nothing."""
        if name in self.constants:
            value = self.constants[name]
            return self._text(value, None) if isinstance(value, ast.Constant | ast.JoinedStr | ast.BinOp) else ""
        module, original = self._imported(name)
        return module._constant(original) if module else ""

    def _returned(self, name: str) -> str:
        """Return the texts that a function of ours returns; else nothing."""
        if name in self.functions:
            found = [n.value for n in ast.walk(self.functions[name]) if isinstance(n, ast.Return) and n.value]
            words = [value for value in found if not isinstance(value, ast.Constant) or value.value]
            if all(isinstance(value, ast.Constant | ast.JoinedStr | ast.IfExp) for value in words):
                return _SEVERAL.join(dict.fromkeys(self._text(value, self.functions[name]) for value in words))
            return ""
        module, original = self._imported(name)
        return module._returned(original) if module else ""

    def _imported(self, name: str) -> tuple[_Module | None, str]:
        """Return the module of ours that a name is imported from, and what it is called there."""
        module, original = self.imports.get(name, ("", ""))
        path = ROOT / (module.replace(".", "/") + ".py")
        return (_module(path) if module.split(".")[0] in LAYERS and path.exists() else None), original

    def _assigned(self, name: str, scope: ast.FunctionDef | None) -> str:
        """Return the texts that a function gives to a variable of its own; else nothing."""
        found: list[ast.expr] = []
        for node in ast.walk(scope) if scope else ():
            match node:
                case ast.Assign([ast.Name(target)], value) | ast.NamedExpr(ast.Name(target), value) if target == name:
                    found.append(value)
                case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
                    found += [v for t, v in zip(targets, values, strict=True) if _name(t) == name]
        words = [self._text(value, scope) for value in found if not isinstance(value, ast.List | ast.Subscript)]
        return _SEVERAL.join(dict.fromkeys(words))


@functools.cache
def _module(path: Path) -> _Module:
    return _Module(path)


def _calls(tree: ast.AST, scope: ast.FunctionDef | None = None) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Yield every call, with the function around it."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Call):
            yield scope, child
        yield from _calls(child, child if isinstance(child, ast.FunctionDef) else scope)


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(name) | ast.Attribute(_, name):
            return name
    return ""


def _placeholder(node: ast.expr) -> str:  # noqa: PLR0911
    """Return a word for what an expression will be: the last name in it."""
    match node:
        case ast.Name(name) | ast.Attribute(_, name):
            word = name.strip("_").replace("_", " ").lower()
            return _WORDS.get(word, word)
        case ast.Subscript(_, ast.Constant(str(key))) | ast.Call(ast.Attribute(_, "get"), [ast.Constant(str(key)), *_]):
            return _WORDS.get(key, key)
        case ast.Call(ast.Name("len" | "sum")) | ast.Call(ast.Attribute(_, "error_count")):
            return "number"
        case ast.Call(ast.Name("map"), [_, each]):
            return _placeholder(each)
        case ast.Call(ast.Attribute(ast.Constant() | ast.Name("dict")) | ast.Name(), [first, *_]):
            return _placeholder(first)
        case ast.Call(ast.Attribute(value)):
            return _placeholder(value)
        case ast.BoolOp(_, [value, *_]) | ast.Subscript(value) | ast.IfExp(_, value) | ast.Starred(value):
            return _placeholder(value)
        case ast.GeneratorExp(_, [generator, *_]) | ast.ListComp(_, [generator, *_]):
            return _placeholder(generator.iter)
        case ast.BinOp(left):
            return _placeholder(left)
    return "..."


if __name__ == "__main__":
    sys.stdout.write(reference())
