"""The surroundings of a run: libraries told to keep to the home folder and to call nobody, and a server for Prefect.

Must be called before Prefect, MLflow or Great Expectations are imported, since they read these names at import.
"""

from __future__ import annotations

import logging
import os

from infra.privacy import keep_files_private, keep_secrets_out_of_logs, make_private
from infra.settings.settings import Settings

log = logging.getLogger(__name__)


def prepare_environment(settings: Settings) -> None:
    """Keep the libraries' files under the home folder, switch their telemetry off, and quieten them.

    What is set already is left as it is: a deployment knows better than a default. From here on files are not for
    others on this machine, and no secret is logged.
    """
    keep_files_private()
    keep_secrets_out_of_logs()
    make_private(settings.home)
    defaults = {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Everything below the flows uses plain logging; this carries it to Prefect's pages.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,infra,validation",
        # Prefect alone would keep every run for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(settings.prune.runs_days * 86_400)),
        "MPLCONFIGDIR": str(settings.home / "cache" / "matplotlib"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for floor in ("flows", "tasks", "infra", "validation"):
        logging.getLogger(floor).setLevel(logging.INFO)
    # It logs whole addresses, and a presigned one is a key to what it names.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _outlive_the_reader()


def _outlive_the_reader() -> None:
    """Go on in silence when whoever read this process's output is gone: a worker that was killed, a closed terminal.

    Prefect writes its log through rich, which ends the process then (exit code 1, a night that is Crashed).
    """
    from rich.console import Console

    def go_silent(console: Console) -> None:
        console.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, console.file.fileno())
        os.close(nothing)

    Console.on_broken_pipe = go_silent  # type: ignore[assignment, method-assign]
