"""The field: whether the deployed file is as good on new patients as was promised.

Patients that arrived after the champion was trained are scored once by the deployed file, and added up in the order of
their arrival. An alarm is an e-process (Shin, Ramdas & Rinaldo 2024, New Engl. J. Stat. Data Sci. 2:229): bets that
patients' error rate lies above the promised one's bound, begun with the first patient or with any later one. While it
does not, no such mixture of bets reaches ``1 / level`` with a chance above ``level``, however patients' rates are
distributed and however often one looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from validation.records import Interval
from validation.statistics.paired_tests import Floats
from validation.statistics.rates import mean_interval, rate_interval

# Level of the bets on one rate, in a year of at most so many patients.
LEVEL = 0.005
PATIENTS_A_YEAR = 1_000
# One-sided level of the promised rate's bound, against which the bets are laid.
PROMISE = 0.05
# Sizes of the bets, as shares of the largest that could lose everything.
BETS = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2])


@dataclass(frozen=True)
class FieldRate:
    """One rate as promised and as found, each with its 95% interval.

    ``evidence`` is the largest e-value so far as a share of the one that raises the alarm; ``alarm`` the number of
    patients after which it was raised.
    """

    promised: Interval | None
    found: Interval | None
    evidence: float = 0.0
    alarm: int | None = None


@dataclass(frozen=True)
class FieldSummary:
    """What was promised and what was found since; ``alarm`` when the two cannot both be true."""

    patients: int
    cells: int
    sensitivity: FieldRate
    specificity: FieldRate
    balanced_accuracy: FieldRate

    @property
    def alarm(self) -> bool:
        """Whether the sensitivity or the specificity is worse than promised."""
        return self.sensitivity.alarm is not None or self.specificity.alarm is not None


def summarise_field(promised: Floats, found: Floats) -> FieldSummary:
    """Compare the field's patients with the promised tallies.

    Both float [patients, 4]: true positives, positives, true negatives, negatives (metrics.Scored.tallies);
    ``promised`` of the champion's evaluation, ``found`` in the order of arrival.
    """
    sensitivity, specificity = (_rate(promised[:, part], found[:, part]) for part in (slice(0, 2), slice(2, 4)))
    balanced = FieldRate(
        mean_interval(sensitivity.promised, specificity.promised), mean_interval(sensitivity.found, specificity.found)
    )
    return FieldSummary(len(found), int(found[:, [1, 3]].sum()), sensitivity, specificity, balanced)


def _rate(promised: Floats, found: Floats) -> FieldRate:
    """Compare one rate; each float [patients, 2], right calls and cells."""
    shown = [rate_interval(part[:, 0], part[:, 1], 0.95) for part in (promised, found)]
    evidence = _evidence(promised, found)
    above = np.flatnonzero(evidence >= 0)
    highest = math.exp(min(0.0, float(evidence.max()))) if len(evidence) else 0.0
    return FieldRate(shown[0], shown[1], highest, int(above[0]) + 1 if len(above) else None)


def _evidence(promised: Floats, found: Floats) -> Floats:
    """Return the logarithm of the e-value, as a share of that of an alarm, after each patient of the field.

    A patient counts by its cells, up to the mean of those promised. It multiplies a bet of size b by
    ``1 + b weight (error rate - promised error rate)``, which loses on average if the promise is kept.
    """
    there = promised[:, 1] > 0
    if not there.any():
        return np.zeros(0) - np.inf
    most = float(promised[there, 1].mean())
    wrong, cells = _capped(promised, most)
    bound = rate_interval(wrong, cells, 1 - 2 * PROMISE)
    if bound is None or bound.high >= 1:
        return np.zeros(0) - np.inf
    wrong, cells = _capped(found, most)
    payoff = (wrong - bound.high * cells) / most
    logs = np.cumsum(np.log1p(BETS[:, None] / bound.high * payoff), axis=1)
    before = np.concatenate([np.zeros((len(BETS), 1)), logs[:, :-1]], axis=1)
    later = logs + np.logaddexp.accumulate(-before, axis=1) - math.log(PATIENTS_A_YEAR)
    mixed: Floats = np.logaddexp.reduce(np.logaddexp(logs, later), axis=0) - math.log(2 * len(BETS))
    return mixed + math.log(LEVEL)


def _capped(tallies: Floats, most: float) -> tuple[Floats, Floats]:
    right, cells = tallies.T
    counted = np.minimum(cells, most)
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = np.where(cells > 0, (cells - right) / cells * counted, 0.0)
    return wrong, counted
