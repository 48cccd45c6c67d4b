"""The command ``retrain site``: the index of all decisions, and the reports, on a local port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from flows.cli.common import AsJson, open_context

if TYPE_CHECKING:
    from infra.report_server import Read
    from tasks.context import Context

PORT = 8765


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("site")(site)


def site(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0 takes any that is free.")] = PORT,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Build the index, print where it is, serve nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build the index of all decisions and show it, with every report, to a browser on this machine.

    It serves on loopback only, until Ctrl-C (or SIGTERM).
    """
    from tasks.reporting.index import build_site

    context = open_context()
    index = build_site(context)
    if build_only:
        _tell(as_json, {"index": str(index)}, f"index: {index}")
        return
    _serve(context, port, str(index), as_json)


def _serve(context: Context, port: int, index: str, as_json: bool) -> None:
    from flows.unattended.signals import interrupt_on_signals
    from infra.report_server import HOST, START, local_site

    with local_site(_reader(context), port) as server:
        url = f"http://{HOST}:{server.server_address[1]}{START}"
        _tell(as_json, {"url": url, "index": index}, f"{url}\nfor this machine only; Ctrl-C ends it")
        try:
            interrupt_on_signals()
            server.serve_forever()
        except KeyboardInterrupt:
            console.err.print("stopped")


def _reader(context: Context) -> Read:
    """Return how a page is read: from the store, or the copy on this machine where the store has lost it."""
    from infra.store.keys import report_key
    from validation.errors import ObjectMissing

    def read(key: str) -> bytes | None:
        try:
            return context.store.get(key)
        except ObjectMissing:
            pass
        name = key.rsplit("/", 1)[-1]
        path = context.workspace.reports / name
        # Only what lies directly among the reports: the key came over the network.
        if key != report_key(name.removesuffix(".html")) or not path.is_file():
            return None
        return path.read_bytes()

    return read


def _tell(as_json: bool, facts: dict[str, str], text: str) -> None:
    if as_json:
        console.json_line(facts)
    else:
        console.out.print(text)
