"""The commands about reports: ``report`` rebuilds one, ``compare`` pairs two, ``site`` serves all and their index."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, open_context

if TYPE_CHECKING:
    from infra.report_server import Read
    from tasks.context import Context


def report(
    decision: Annotated[
        str, typer.Argument(metavar="[ID|latest]", help="A decision, or the start of its id.")
    ] = "latest",
    as_json: AsJson = False,
) -> None:
    """Rebuild the report on a decision from its records, and print where it is."""
    from tasks.nights import find_night
    from tasks.report import report as build_report

    context = open_context()
    night = find_night(context, decision)
    night = night.model_copy(update={"report": str(build_report(context, night))})
    facts = {"decision": night.decision, "verdict": night.verdict, "report": night.report}
    console.emit(facts, as_json, lambda _: display.verdict(night))


def compare(
    one: Annotated[str, typer.Argument(metavar="DECISION", help="A decision's id, the start of it, or 'latest'.")],
    other: Annotated[str, typer.Argument(metavar="DECISION", help="Another one; which is named first is the same.")],
    as_json: AsJson = False,
) -> None:
    """Compare the challengers of two decisions on the cells that both judged, paired by patient.

    The pair is chosen after its figures were known, outside the error budget: the comparison promotes nothing.
    """
    from dataclasses import asdict

    from tasks.commands.compare_decisions import compare_decisions

    result = compare_decisions(open_context(), one, other)
    console.emit(asdict(result), as_json, lambda _: display.comparison(result))


def site(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="0 takes any free port.", show_default="RETRAIN_SITE__PORT"),
    ] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Build the index, print where it is, serve nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the index of all decisions and serve it, with every report, to browsers on this machine.

    It serves on loopback (RETRAIN_SITE__HOST), until Ctrl-C (or SIGTERM).
    """
    from flows.unattended.signals import interrupt_on_signals
    from infra.report_server import START, report_site
    from infra.settings.groups import is_loopback, reachable
    from infra.settings.settings import secret_value
    from tasks.reporting.index import build_site

    context = open_context()
    index = str(build_site(context))
    if build_only:
        console.emit({"index": index}, as_json, lambda _: console.out.print(f"index: {index}"))
        return
    settings = context.settings.site
    login, named = secret_value(context.settings.up.auth), urlsplit(settings.address or "").hostname
    port = settings.port if port is None else port
    with report_site(reader(context), port, host=settings.host, login=login, names=[named] if named else []) as server:
        url = f"http://{reachable(settings.host)}:{server.server_address[1]}{START}"
        whom = "for this machine only" if is_loopback(settings.host) else "for whoever has the login"
        text = f"{url}\n{whom}; Ctrl-C ends it"
        console.emit({"url": url, "index": index}, as_json, lambda _: console.out.print(text))
        try:
            interrupt_on_signals()
            server.serve_forever()
        except KeyboardInterrupt:
            console.err.print("stopped")


def reader(context: Context) -> Read:
    """Return a function that reads a page from the store, or the copy on this machine if the store has lost it."""
    from infra.local.files import leads_out
    from infra.store.keys import report_key
    from validation.errors import ObjectMissing

    def read(key: str) -> bytes | None:
        with suppress(ObjectMissing):
            return context.store.get(key)
        name = key.rsplit("/", 1)[-1]
        path = context.workspace.reports / name
        # Only files directly in the folder of reports: the key came over the network.
        ours = key == report_key(name.removesuffix(".html")) and not leads_out(path, context.workspace.reports)
        if not ours or not path.is_file():
            return None
        return path.read_bytes()

    return read
