"""Privacy of this process: its files are closed to other users, its secrets are masked in every log."""

from __future__ import annotations

import logging
import os
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from validation.errors import RetrainError
from validation.redaction import mask

log = logging.getLogger(__name__)

# Cells come from patients, so other users have no access. The group's access is left to the person's own umask.
NOT_FOR_OTHERS = 0o007
ONLY_OURS = 0o700


def keep_files_private() -> None:
    """Deny other users access to all files that this process and its children create."""
    os.umask(os.umask(NOT_FOR_OTHERS) | NOT_FOR_OTHERS)


def make_private(folder: Path) -> None:
    """Create a folder with mode 0700; an existing one keeps its mode, with a warning when others may write to it.

    Raises:
        RetrainError: when it cannot be created.
    """
    try:
        if folder.is_dir():
            mode = folder.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                log.warning("others may write to %s: chmod o-w %s", folder, folder)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=ONLY_OURS, exist_ok=True)
    except OSError as error:
        raise RetrainError(
            f"cannot create the folder {folder}: {error.strerror or error}", "choose another RETRAIN_HOME"
        ) from error


def keep_secrets_out_of_logs() -> None:
    """Mask secrets in every log record of every library, for all handlers."""
    plain = logging.getLogRecordFactory()
    if getattr(plain, "masks", False):
        return

    def masked(*args: Any, **values: Any) -> logging.LogRecord:
        record = plain(*args, **values)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            return record  # a mistake in the call, which logging reports itself
        if (hidden := mask(text)) != text:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            if (hidden := mask(trace)) != trace:
                # A formatter uses this text instead of formatting the exception again.
                record.exc_text, record.exc_info = hidden, None
        return record

    masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masked)


@contextmanager
def redact_exceptions() -> Iterator[None]:
    """Replace an unexpected exception whose text contains a secret by one without it.

    Wraps a whole flow: Prefect stores the text of the exception that ends one.
    """
    try:
        yield
    except RetrainError:
        raise  # its text was masked when it was created
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        if mask(trace) == trace:
            raise
        log.error("%s", trace)
        raise RetrainError(f"unexpected {type(error).__name__}: {error}", "see the log") from None
