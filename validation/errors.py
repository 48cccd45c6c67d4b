"""Every error that this project raises on purpose, drawn as one tree.

    RetrainError                 exit 1   any error for the person in charge
    ├── UsageError               exit 2   a wrong argument or setting
    │   └── SettingsError                 an unknown or invalid setting, refused by name
    ├── DataInvalid              exit 3   tonight's data must not be trained on
    ├── Unreachable              exit 4   an outside service does not answer, or refuses us
    │   ├── StoreUnreachable              the object store
    │   └── RegistryUnreachable           the model registry
    ├── ObjectMissing            exit 1   an object that a record names is not in the store
    ├── ModelFileInvalid         exit 1   a model file that is damaged or breaks its contract
    ├── TrainingFailed           exit 1   a training ended without a model
    ├── NightRunning             exit 1   another night is running on the home folder
    ├── ChampionChanged          exit 1   the champion is not the one that was evaluated
    ├── NotReproduced            exit 1   a registered model file does not give the predictions it was judged by
    ├── ApprovalClosed           exit 1   an approval that has been answered, or has expired
    ├── ChampionUnusable         exit 1   the champion no longer loads or scores
    └── LedgerSpent              exit 1   as many looks were taken as the error budget of a year allows

A message says what was expected, what was found, where, and what to do next. ``exit_code`` is what the
command line ends with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from validation.redaction import mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from validation.records import EpochRecord

__all__ = [
    "ApprovalClosed",
    "ChampionChanged",
    "ChampionUnusable",
    "DataInvalid",
    "LedgerSpent",
    "ModelFileInvalid",
    "NightRunning",
    "NotReproduced",
    "ObjectMissing",
    "RegistryUnreachable",
    "RetrainError",
    "SettingsError",
    "StoreUnreachable",
    "TrainingFailed",
    "Unreachable",
    "UsageError",
]


class RetrainError(Exception):
    """Base of all errors for a person: one clear message, no traceback.

    Args:
        message: what was expected, what was found, and where.
        hint: what to do next; shown on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        # Masked here, since messages also reach Prefect's records and the logs of libraries.
        message, hint = mask(message), mask(hint)
        # Both in args, so that the error survives pickling between processes.
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(RetrainError):
    """An invalid argument of the command line."""

    exit_code = 2


class SettingsError(UsageError):
    """An unknown or invalid setting."""


class DataInvalid(RetrainError):
    """Tonight's data as a whole must not be trained on; the champion is untouched."""

    exit_code = 3


class Unreachable(RetrainError):
    """An outside service does not answer, or refuses us."""

    exit_code = 4


class StoreUnreachable(Unreachable):
    """The object store does not answer, refuses our credentials, or has no such bucket."""


class RegistryUnreachable(Unreachable):
    """The model registry does not answer or cannot be opened."""


class ObjectMissing(RetrainError):
    """An object that a record names is not in the store."""


class ModelFileInvalid(RetrainError):
    """A model file that is damaged, tampered with, or breaks the contract of the model file."""


class TrainingFailed(RetrainError):
    """A training ended without a model: diverged, crashed, or was killed.

    What it got to is known where it ran in a child of the process that raises.
    """

    started_at: datetime | None = None
    ended_at: datetime | None = None
    epochs: Sequence[EpochRecord] = ()

    def after(self, epochs: Sequence[EpochRecord], started_at: datetime | None, ended_at: datetime) -> Self:
        """Note what the training got to; return the error."""
        self.epochs, self.started_at, self.ended_at = tuple(epochs), started_at, ended_at
        return self


class NightRunning(RetrainError):
    """Another night is running on the same home folder."""


class ChampionChanged(RetrainError):
    """The champion is no longer the one that the challenger was evaluated against."""


class NotReproduced(RetrainError):
    """The registered model file does not give the predictions that its promotion rests on."""


class ApprovalClosed(RetrainError):
    """An approval that has been answered already, or has expired."""


class LedgerSpent(RetrainError):
    """The error budget of the last 365 days is spent."""


class ChampionUnusable(RetrainError):
    """The champion no longer loads or scores, so no challenger can be compared with it."""
