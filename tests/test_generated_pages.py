"""docs/troubleshooting.md and docs/commands.md say what the code and the command line say, and all of it."""

from __future__ import annotations

import re

from docs import commands, troubleshooting
from docs.troubleshooting import HANDED_ON, INSTALLING, REFUSED, kinds, messages, sources
from tests import ROOT
from validation.findings import REASONS

# Not the definitions, nor what makes an error of the same type again.
MADE = re.compile(rf"(?<!class )\b({'|'.join(kinds())})\((?!\))")
CHECKED = re.compile(r"raise (ValueError|SystemExit)\((?!str\()")


def test_the_pages_are_current() -> None:
    for page in (troubleshooting, commands):
        name = page.__name__.removeprefix("docs.")
        assert (ROOT / "docs" / f"{name}.md").read_text() == page.reference(), (
            f"python -m {page.__name__} > docs/{name}.md"
        )


def test_every_error_that_the_code_makes_is_found() -> None:
    """Counted by another way than the page's: by the text of the source."""
    found = {(message.path, message.line) for message in messages()}
    for path in sources():
        name = str(path.relative_to(ROOT))
        if name == "validation/errors.py":
            continue
        pattern = [MADE, *([CHECKED] if name.startswith(REFUSED + INSTALLING) else [])]
        lines = enumerate(path.read_text().splitlines(), start=1)
        made = [n for n, line in lines if any(one.search(line) for one in pattern)]
        assert [n for n in made if (name, n) not in found] == [], name


def test_every_message_says_something_and_what_to_do() -> None:
    for message in messages():
        if message.text == HANDED_ON or not message.is_error:
            continue
        where = f"{message.path}:{message.line}"
        assert re.search(r"[a-z]{2}", re.sub(r"<[^>]*>", "", message.text)), f"{where} says nothing by itself"
        assert message.hint not in ("", "<...>"), f"{where} does not say what to do"
        assert "..." not in re.findall(r"<([^>]*)>", message.text + message.hint), where


def test_messages_are_as_a_user_meets_them() -> None:
    page = troubleshooting.reference()
    for row in (
        "| `no folder at <root> (store <address>)` | create it, put cells into it with `retrain import FOLDER`, or set "
        "RETRAIN_STORE | 4 |",
        "| `port <port> is taken` | by another Prefect server? set PREFECT_API_URL to use it, or change "
        "RETRAIN_UP__PORT | 2 |",
        "| `cannot download <address>: the server answered <text>` |",
        "| `RETRAIN_TRAINING__UNUSABLE_GPU is fail, and <what>` | `retrain devices` ",
        "| `<address> returned <number> of the <size> bytes of <key>` |",
        "| `must have exactly one group, <named>; it has <groups>` |",
        "| `<venv> was made by Python <made>, and this is <version>: remove <venv> first` |",
        "| 401 | `These pages need a login.` | ",
    ):
        assert row in page
    for reason in REASONS:
        assert f"\n| {reason} | " in page


def test_every_command_and_option_is_listed() -> None:
    page = commands.reference()
    assert page.count("\n## retrain ") == page.count("\n```bash\nretrain ") > 20
    assert "\n| `--at TIME` | " in page
    assert "\n| `--build-only` | " in page
