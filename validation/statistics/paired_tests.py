"""The tests of the gate: two models on the same cells, paired, the patient as the unit. Pure arithmetic on tallies.

Two questions, two methods, each chosen by measurement (docs/gate.md):

- Is it better? Sign flips: if the models are equally good, their names can be exchanged in any patient. The test is
  exact under that exchangeability, whatever the patients' sizes. Inverted it gives a bound: among the differences in
  random subsets of patients, the one with a share ``level`` below it (Hartigan 1969, JASA 64:1303).
- Is it not worse by more than a margin? The patients' contributions and their variance are measured against the margin
  (Obuchowski 1998, Stat. Med. 17:1495). Sign flips say "not worse" too often there: a small holdout often misses a loss
  in few patients, and so its variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The quantiles themselves: importing scipy.stats costs every process of a night half a second.
from scipy.special import ndtri, stdtrit

Floats = npt.NDArray[np.float64]

# Any fixed seed: the same predictions must give the same interval on every machine.
SEED = 20_130
# Up to this many patients all flips are enumerated, not sampled.
COUNTED = 12
# Power of the smallest detectable difference (Cohen 1988).
POWER = 0.8
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

    ``(value - delta)^2 = z^2 n / (n - 1) sum((gains - delta shares)^2)``, a quadratic. With too few patients of too
    unequal sizes there is no bound: -1 and 1.
    """
    count = len(difference.gains)
    if count < 2:
        return -1.0, 1.0
    scale = float(ndtri(level)) ** 2 * count / (count - 1)
    gains, shares, value = difference.gains, difference.shares, difference.value
    a = 1 - scale * float(shares @ shares)
    if a <= 0:
        return -1.0, 1.0
    half = value - scale * float(gains @ shares)
    c = value**2 - scale * float(gains @ gains)
    root = math.sqrt(max(0.0, half**2 - a * c))
    low, high = (half - root) / a, (half + root) / a
    # Rounding must not separate a bound from an equal value: all patients the same.
    return max(-1.0, min(low, value)), min(1.0, max(high, value))


def further_patients(method: str, distance: float, spread: tuple[float, float], patients: int, level: float) -> int:
    """Estimate how many more patients would show a difference that is ``distance`` above its bound.

    ``spread`` is tonight's standard error and effective number of patients; with k times the patients the first is
    divided by the square root of k and the second multiplied by k. ``method`` is "flips" or "variance".
    """
    error, effective = spread

    def shown(total: int) -> bool:
        times = total / patients
        return distance / (error / math.sqrt(times)) > _quantile(method, effective * times, level)

    low, high = patients, patients + 1
    while not shown(high) and high < MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high - patients


def detectable(error: float, effective: float, level: float) -> float | None:
    """Return the smallest true difference that sign flips find above 0 at ``level`` with a power of 80%.

    None with too few patients for any.
    """
    quantile = _quantile("flips", effective, level)
    if not (math.isfinite(quantile) and math.isfinite(error)):
        return None
    return error * (quantile + float(ndtri(POWER)))


def _quantile(method: str, effective: float, level: float) -> float:
    """Return how many standard errors a value must be above its bound; infinite with too few patients.

    Sign flips approach Student's test for normal contributions (Lehmann & Romano 2005, section 15.2). The variance
    under the bound also contains ``distance^2 / effective``.
    """
    if method == "flips":
        if effective < -math.log2(level):
            return math.inf
        return -float(stdtrit(effective - 1, level))
    z = -float(ndtri(level))
    left = 1 - z**2 / effective if effective else -1.0
    return z / math.sqrt(left) if left > 0 else math.inf
