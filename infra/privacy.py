"""What a process of ours keeps to itself: its files from others on this machine, its secrets from every log."""

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

# Cells come from patients, so nothing is for everybody. What the group may do is for the person's own umask to say.
NOT_FOR_OTHERS = 0o007
ONLY_OURS = 0o700


def keep_files_private() -> None:
    """Let all files that this process and its children make be out of the reach of others, whatever the umask was."""
    os.umask(os.umask(NOT_FOR_OTHERS) | NOT_FOR_OTHERS)


def make_private(folder: Path) -> None:
    """Make a folder that is ours alone; one that is there is left as it is, and named when others may write to it.

    Raises:
        RetrainError: when it cannot be made.
    """
    try:
        if folder.is_dir():
            mode = folder.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                log.warning("others may write to %s: chmod o-w %s", folder, folder)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two at once may both have found it missing.
        folder.mkdir(mode=ONLY_OURS, exist_ok=True)
    except OSError as error:
        raise RetrainError(
            f"cannot make the folder {folder}: {error.strerror or error}", "choose another RETRAIN_HOME"
        ) from error


def keep_secrets_out_of_logs() -> None:
    """Mask every record of Python's logging, of every library and wherever it goes."""
    plain = logging.getLogRecordFactory()
    if getattr(plain, "masks", False):
        return

    def masked(*args: Any, **values: Any) -> logging.LogRecord:
        record = plain(*args, **values)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            return record  # a mistake in the call, for logging to tell of in its way
        if (hidden := mask(text)) != text:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[0] is not None:
            told = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            if (hidden := mask(told)) != told:
                # A formatter that finds the text takes it and does not look at the error again.
                record.exc_text, record.exc_info = hidden, None
        return record

    masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masked)


@contextmanager
def redact_exceptions() -> Iterator[None]:
    """Let an error that nobody foresaw, and that holds a secret, go on as one that does not.

    Around the whole of a flow: Prefect keeps the text of what ended one.
    """
    try:
        yield
    except RetrainError:
        raise  # its text was masked when it was made
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        if mask(told) == told:
            raise
        log.error("%s", told)
        raise RetrainError(f"unexpected {type(error).__name__}: {error}", "see the log") from None
