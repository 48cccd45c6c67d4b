"""The environment of a run: libraries keep their files under the home folder and send no telemetry.

Must be called before Prefect, MLflow or Great Expectations are imported, since they read these variables at import.
"""

from __future__ import annotations

import logging
import os

from infra.privacy import keep_files_private, keep_secrets_out_of_logs, make_private
from infra.settings.settings import Settings

log = logging.getLogger(__name__)


def prepare_environment(settings: Settings) -> None:
    """Keep the libraries' files under the home folder, switch off their telemetry, and reduce their logging.

    Variables that are set already are kept. From here on, new files are closed to other users and secrets are masked
    in logs.
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
        # The packages use plain logging; this sends it to Prefect's pages.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,infra,validation",
        # By default Prefect keeps every run for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(settings.prune.runs_days * 86_400)),
        "MPLCONFIGDIR": str(settings.home / "cache" / "matplotlib"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for package in ("flows", "tasks", "infra", "validation"):
        logging.getLogger(package).setLevel(logging.INFO)
    # It logs whole addresses, which may contain a signature or a webhook's secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _survive_a_closed_output()


def _survive_a_closed_output() -> None:
    """Continue silently when the reader of this process's output is gone: a killed worker, a closed terminal.

    Prefect logs through rich, which would end the process (exit code 1, the night Crashed).
    """
    from rich.console import Console

    def go_silent(console: Console) -> None:
        console.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, console.file.fileno())
        os.close(nothing)

    Console.on_broken_pipe = go_silent  # type: ignore[assignment, method-assign]
