"""The tests of the gate: two models on the same cells, paired, the patient as the unit. Pure arithmetic on tallies.

Two questions, two methods, chosen by measurement (docs/gate.md):

- Is it better? Sign flips: if the models are equally good, their names can be exchanged in any patient. The test is
  exact under that exchangeability, whatever the patients' sizes. Inverted it gives a bound: among the differences in
  random subsets of patients, the one with a share ``level`` below it (Hartigan 1969, JASA 64:1303).
- Is it not worse by more than a margin? The patients' contributions and their variance are measured against the margin
  (Obuchowski 1998, Stat. Med. 17:1495), with two corrections. Few patients often miss a loss that sits in few patients,
  and so its variance: each patient is taken to vary by ``UNSEEN`` more than is seen. And a patient's gain counts up to
  ``MOST_GAIN`` only, since a large gain in few patients adds more variance than difference: a better model would pass
  less often. The mean of capped gains is at most that of the gains, so their lower bound is one of the gains too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The quantiles themselves: importing scipy.stats costs every process of a night half a second.
from scipy.special import ndtr, ndtri, stdtrit

Floats = npt.NDArray[np.float64]

# Any fixed seed: the same predictions must give the same interval on every machine.
SEED = 20_130
# Up to this many patients all flips are enumerated, not sampled.
COUNTED = 12
# Both fixed in advance, chosen by measurement (docs/gate.md). What a patient's gain counts for at most, in units of
# sqrt(its share / patients): 5 points of a patient of mean size, more of a smaller one.
MOST_GAIN = 0.05
# Standard deviation of what is not seen of a patient, as a share of the cells of one of mean size.
UNSEEN = 0.015
# Power of the smallest detectable difference (Cohen 1988).
POWER = 0.8
SWEEPS = 1_000
# Largest estimate of patients.
MOST = 1_000_000


@dataclass(frozen=True)
class Difference:
    """One difference between two models, by patient: ``gains`` sum to the value, ``shares`` to 1; float [patients].

    A patient's share is its part of the cells, so ``gains - delta * shares`` is its deviation from a true difference
    ``delta``.
    """

    gains: Floats
    shares: Floats

    @property
    def value(self) -> float:
        """The difference."""
        return float(self.gains.sum())

    @property
    def error(self) -> float:
        """Standard error, patients as the unit: linearised ratio estimator with n / (n - 1); NaN for one patient."""
        count = len(self.gains)
        if count < 2:
            return math.nan
        left = self.gains - self.value * self.shares
        return math.sqrt(count / (count - 1) * float(left @ left))

    @property
    def error_with_unseen(self) -> float:
        """Standard error that includes what is not seen of each patient."""
        return math.hypot(self.error, UNSEEN / math.sqrt(len(self.gains) - 1)) if len(self.gains) > 1 else math.nan

    @property
    def effective(self) -> float:
        """Number of patients of equal size with as much information; 0 for one patient."""
        count = len(self.shares)
        return (count - 1) / count / float(self.shares @ self.shares) if count > 1 else 0.0


def of_shares(right: Floats, cells: Floats) -> Difference | None:
    """Return the difference of a share: ``right`` [patients] right calls more than the other model, of ``cells``.

    None when there are no cells. Patients without cells of the class are left out.
    """
    there = cells > 0
    if not there.any():
        return None
    total = cells.sum()
    return Difference(right[there] / total, cells[there] / total)


def mean_of(
    one: Difference | None, two: Difference | None, has: tuple[npt.NDArray[np.bool_], ...]
) -> Difference | None:
    """Return the mean of two differences, each over its patients in ``has``, as one over all patients."""
    if one is None or two is None:
        return None
    gains, shares = np.zeros(len(has[0])), np.zeros(len(has[0]))
    for part, where in zip((one, two), has, strict=True):
        gains[where] += part.gains / 2
        shares[where] += part.shares / 2
    there = has[0] | has[1]
    return Difference(gains[there], shares[there])


def flipped_bounds(difference: Difference, *, flips: int, level: float) -> tuple[float, float]:
    """Return the one-sided lower and upper bounds at ``level`` by sign flips; -1 and 1 where there are none.

    Flipping the patients S gives a sum at least as large as the observed one, at a true difference delta, if and only
    if ``sum of gains in S <= delta * sum of shares in S``. So the p value of delta is the share of subsets whose
    difference is at most delta, including the empty one (nothing flipped), and the bound is one of these differences.
    """
    count = len(difference.gains)
    if count <= COUNTED:
        chosen = (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    else:
        chosen = (np.random.default_rng(SEED).random((flips, count)) < 0.5).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        subsets = (chosen @ difference.gains) / (chosen @ difference.shares)
    allowed = math.floor(level * (len(subsets) + 1) + 1e-9) - 1
    if allowed < 0:
        return -1.0, 1.0
    low = np.sort(np.where(np.isnan(subsets), -np.inf, subsets))[allowed]
    high = np.sort(np.where(np.isnan(subsets), np.inf, subsets))[::-1][allowed]
    return max(-1.0, float(low)), min(1.0, float(high))


def null_variance_bounds(difference: Difference, *, level: float) -> tuple[float, float]:
    """Return the one-sided bounds at ``level``: where ``value - delta`` is z standard errors under delta itself.

    Gains are capped for the lower bound and losses for the upper one (``MOST_GAIN``), and the variance includes what
    is not seen (``UNSEEN``). With too few patients of too unequal sizes there is no bound: -1 and 1.
    """
    turned = Difference(-difference.gains, difference.shares)
    low, high = _null_variance_bound(difference, level), -_null_variance_bound(turned, level)
    # Rounding must not separate a bound from an equal value: all patients the same.
    return max(-1.0, min(low, difference.value)), min(1.0, max(high, difference.value))


def _null_variance_bound(difference: Difference, level: float) -> float:
    """Solve ``(value - delta)^2 = z^2 n / (n - 1) (sum((gains - delta shares)^2) + UNSEEN^2 / n)``, lower delta."""
    count = len(difference.gains)
    if count < 2:
        return -1.0
    scale = float(ndtri(level)) ** 2 * count / (count - 1)
    gains, shares = _capped(difference), difference.shares
    value = float(gains.sum())
    a = 1 - scale * float(shares @ shares)
    if a <= 0:
        return -1.0
    half = value - scale * float(gains @ shares)
    c = value**2 - scale * (float(gains @ gains) + UNSEEN**2 / count)
    return (half - math.sqrt(max(0.0, half**2 - a * c))) / a


def _capped(difference: Difference) -> Floats:
    count = len(difference.gains)
    return np.minimum(difference.gains, MOST_GAIN * np.sqrt(difference.shares / count))


def best_effective(least: Difference, most: Difference, margin: float) -> float:
    """Return the largest ``statistic^2`` of non-inferiority of any gains from ``least.gains`` to ``most.gains``.

    To be compared with z^2; without any gain or loss, and nothing unseen, it would be ``effective``. With S the sum of
    the contributions ``x = min(gain, cap) + margin * share`` and Q that of their squares and of what is unseen,
    ``S^2 / Q`` is the maximum of ``2 c S - c^2 Q`` over c. It is raised by turns: ``c = S / Q``, then every x as near
    to ``1 / c`` as it may be.
    """
    count = len(most.gains)
    if count < 2:
        return 0.0
    low, high = (_capped(one) + margin * one.shares for one in (least, most))
    x, best = high, 0.0
    for _ in range(SWEEPS):
        total, squares = float(x.sum()), float(x @ x) + UNSEEN**2 / count
        if total <= 0:
            return 0.0
        if total**2 / squares <= best * (1 + 1e-9):
            break
        best = total**2 / squares
        x = np.clip(squares / total, low, high)
    return best * (count - 1) / count


@dataclass(frozen=True)
class Question:
    """One test of the gate: whether a difference lies above its bound.

    ``method`` is "flips" or "variance"; ``distance`` of the difference from the bound; ``error`` and ``effective`` as
    those of a ``Difference``.
    """

    method: str
    distance: float
    error: float
    effective: float

    def is_shown(self, times: float, level: float) -> bool:
        """Whether ``times`` as many patients of the same kind would show it, if the difference stays the same."""
        return self.distance > _quantile(self.method, self.effective * times, level) * self.error / math.sqrt(times)

    def power(self, more: float, level: float) -> float:
        """Return the chance that it is shown if the true distance is ``more`` larger."""
        quantile = _quantile(self.method, self.effective, level)
        if not (math.isfinite(quantile) and math.isfinite(self.error)):
            return 0.0
        if self.error == 0:
            return float(self.distance + more > 0)
        return float(ndtr((self.distance + more) / self.error - quantile))


def further_patients(question: Question, patients: int, level: float) -> int:
    """Estimate how many more patients would answer a question, if the difference stays the same; at most ``MOST``."""
    low, high = patients, patients + 1
    while not question.is_shown(high / patients, level) and high < MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if question.is_shown(middle / patients, level) else (middle, high)
    return high - patients


def detectable(questions: Sequence[Question], level: float) -> float | None:
    """Return the smallest increase of every distance that answers all questions together with a power of 80% or more.

    The chances of missing each are added up (Bonferroni), however the questions depend on each other. None with too few
    patients for any.
    """

    def missed(more: float) -> float:
        return sum(1 - question.power(more, level) for question in questions)

    if not questions or missed(1.0) > 1 - POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) > 1 - POWER else (low, middle)
    return high


def least_patients(level: float) -> int:
    """Return how many patients must differ before sign flips can find anything at ``level``."""
    return math.ceil(-math.log2(level) - 1e-9)


def least_effective(level: float) -> float:
    """Return the number of effective patients above which the variance under the bound can pass at ``level``."""
    return float(ndtri(level)) ** 2


def error_within(distance: float, effective: float, level: float) -> float:
    """Return the standard error behind a bound by ``null_variance_bounds`` that is ``distance`` below its value."""
    return distance * math.sqrt(max(0.0, 1 / least_effective(level) - 1 / effective)) if effective else math.nan


def _quantile(method: str, effective: float, level: float) -> float:
    """Return how many standard errors a value must be above its bound; infinite with too few patients.

    Sign flips approach Student's test for normal contributions (Lehmann & Romano 2005, section 15.2). The variance
    under the bound also contains ``distance^2 / effective``.
    """
    if method == "flips":
        if effective < -math.log2(level):
            return math.inf
        return -float(stdtrit(effective - 1, level))
    left = 1 - least_effective(level) / effective if effective else -1.0
    return -float(ndtri(level)) / math.sqrt(left) if left > 0 else math.inf
