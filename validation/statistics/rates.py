"""Intervals of one model's metrics, with patients as the unit; chosen by their coverage (docs/gate.md)."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, expit, gammaln, logit, ndtri, stdtrit

from validation.records import Interval
from validation.statistics.paired_tests import Floats

# Points of the rate, on the logit scale, and of the correlation within patients.
RATES = np.linspace(-12.0, 12.0, 65)
CORRELATIONS = 32
# Points of the printed rate.
PRINTED = np.linspace(-12.0, 12.0, 385)


def rate_interval(right: Floats, cells: Floats, level: float) -> Interval | None:
    """Return the share of right calls with its interval; ``right`` and ``cells`` float [patients]. None without cells.

    Each patient has its own rate: right calls are beta-binomial, and cells of a patient correlate by rho. The posterior
    of rho has an even prior, and a Jeffreys prior on the mean rate. Given rho the share over all cells knows as much as
    ``(sum n)^2 / sum(n (1 + (n - 1) rho))`` independent cells (Kish 1965), and its posterior is that of a beta. But it
    knows no more than the error by leaving out patients says, which is larger where rates depend on patients' sizes.
    """
    there = cells > 0
    if not there.any():
        return None
    right, cells = right[there], cells[there]
    share, total = float(right.sum() / cells.sum()), float(cells.sum())
    rho, weights = _correlation(right, cells)
    known = total**2 / (cells * (1 + (cells - 1) * rho[:, None])).sum(axis=1)
    known = np.minimum(known, _known_without_each(right, cells, level))[:, None]
    below: Floats = weights @ betainc(known * share + 0.5, known * (1 - share) + 0.5, expit(PRINTED))
    low, high = np.asarray(expit(np.interp([(1 - level) / 2, (1 + level) / 2], below, PRINTED)))
    return Interval(value=share, low=min(float(low), share), high=max(float(high), share), level=level)


def _known_without_each(right: Floats, cells: Floats, level: float) -> float:
    """Return how many independent cells have the error of a share by leaving out patients, with Student's tail."""
    if len(cells) < 2:
        return math.inf
    shares = cells / cells.sum()
    left = (right - right.sum() * shares) / cells.sum() / (1 - shares)
    tail, freedom = (1 - level) / 2, max(1.0, effective_patients(cells) - 1)
    variance = float(left @ left) * (float(stdtrit(freedom, tail)) / float(ndtri(tail))) ** 2
    # Half a cell of each kind more: a share of 0 or 1 has an error too.
    share = (right.sum() + 0.5) / (cells.sum() + 1)
    return float(share * (1 - share)) / variance if variance > 0 else math.inf


def _correlation(right: Floats, cells: Floats) -> tuple[Floats, Floats]:
    """Return points of the correlation within patients, and their posterior weights; float [k] each."""
    nodes, weights = np.polynomial.legendre.leggauss(CORRELATIONS)
    u = (nodes + 1) / 2
    # Correlations are mostly small: rho = u^3 has more points there.
    rho, prior = u**3, np.log(weights * u**2)
    b_over_a = (1 - rho) / rho
    a, b = (np.asarray(expit(sign * RATES))[:, None] * b_over_a for sign in (1, -1))
    likelihood = _log_rising(a, right) + _log_rising(b, cells - right) - _log_rising(b_over_a, cells)
    # Jeffreys' prior of a proportion, times the derivative of the rate by its logit.
    jeffreys: Floats = (np.log(expit(RATES)) + np.log(expit(-RATES))) / 2
    log_density = likelihood + jeffreys[:, None] + prior
    density = np.exp(log_density - log_density.max()).sum(axis=0)
    kept = density > 1e-6 * density.max()
    return rho[kept], density[kept] / density[kept].sum()


def _log_rising(start: Floats, counts: Floats) -> Floats:
    """Sum over patients the logarithms of ``start (start + 1) ... (start + count - 1)``."""
    values, times = np.unique(counts, return_counts=True)
    ratios = np.asarray(gammaln(start[..., None] + values)) - np.asarray(gammaln(start))[..., None]
    rising: Floats = ratios @ times.astype(np.float64)
    return rising


def mean_interval(one: Interval | None, two: Interval | None) -> Interval | None:
    """Return the mean of two rates: distances of the bounds add like errors (MOVER, Zou & Donner 2008)."""
    if one is None or two is None:
        return None
    value = (one.value + two.value) / 2
    low = value - math.hypot(one.value - one.low, two.value - two.low) / 2
    high = value + math.hypot(one.high - one.value, two.high - two.value) / 2
    return Interval(value=value, low=max(0.0, low), high=min(1.0, high), level=one.level)


def without_each(patients: int) -> Floats:
    """Return the weights that leave one patient out; float [patients, patients]."""
    return np.ones((patients, patients)) - np.eye(patients)


def effective_patients(cells: Floats) -> float:
    """Return the number of patients of equal size with as much information; ``cells`` float [patients]."""
    return float(cells.sum() ** 2 / (cells @ cells)) if cells.any() else 0.0


def jackknife_error(without: Floats) -> float:
    """Return the standard error of a metric from its values without each patient; infinite where it is unknown.

    That is for fewer than two patients, or where it is undefined without one of them: the only one of a class.
    """
    count = len(without)
    if count < 2 or np.isnan(without).any():
        return math.inf
    return math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))


def jackknife_half(without: Floats, freedom: float, level: float) -> float:
    """Return half the width of a two-sided interval: Student's with so many degrees of freedom, at least one."""
    return -float(stdtrit(max(1.0, freedom), (1 - level) / 2)) * jackknife_error(without)


def jackknife_interval(
    value: float, without: Floats, cells: Floats, level: float, lowest: float = 0.0
) -> Interval | None:
    """Return the interval of a metric from ``lowest`` to 1, on the logit scale; None where it is undefined.

    ``without`` float [patients]: the metric without each patient; ``cells`` float [patients]. Few patients have most of
    the errors, so their variance is known half as well as with normal ones: with half the degrees of freedom. A metric
    that no patient changes, such as an AUC of 1, is known as well as a rate with every cell right.
    """
    if math.isnan(value):
        return None

    def scaled(x: Floats) -> Floats:
        result: Floats = logit(np.clip((x - lowest) / (1 - lowest), 1e-9, 1 - 1e-9))
        return result

    half = jackknife_half(scaled(without), (effective_patients(cells) - 1) / 2, level)
    if math.isinf(half):
        return Interval(value=value, low=lowest, high=1.0, level=level)
    if np.ptp(without) == 0:
        sure = rate_interval(cells, cells, level)
        reach = (1 - lowest) * (1 - sure.low if sure else 1.0)
        return Interval(value=value, low=max(lowest, value - reach), high=min(1.0, value + reach), level=level)
    low, high = (lowest + (1 - lowest) * float(expit(scaled(np.array(value)) + move)) for move in (-half, half))
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level)
