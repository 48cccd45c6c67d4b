"""The tests of the gate: two models on the same cells, paired, the patient as the unit. Pure arithmetic on tallies.

Two questions, two methods, each chosen by measurement (docs/gate.md):

- Is it better? Sign flips: if the models are equally good, then in any patient their names could be exchanged. The test
  is exact where that changes nothing, whatever the patients' sizes. Turned round it gives a bound: among the
  differences in random subsets of patients, the one with a share ``level`` below it (Hartigan 1969, JASA 64:1303).
- Is it not worse by more than a margin? The patients' contributions are measured against the margin, and so is
  their variance (Obuchowski 1998, Stat. Med. 17:1495). Sign flips call too much "not worse" there: a loss in few
  patients is often not seen in a small holdout, and what was not seen has no variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

Floats = npt.NDArray[np.float64]

# Any fixed number serves: the same predictions must give the same interval on every machine.
SEED = 20_130
# With so few patients all flips are counted, and none is drawn.
COUNTED = 12
# What the smallest detectable difference is shown with (Cohen 1988).
POWER = 0.8
# Where an estimate of patients stops being one.
MOST = 1_000_000


@dataclass(frozen=True)
class Difference:
    """One difference between two models, by patient: ``gains`` sum to the value, ``shares`` to 1; float [patients].

    A patient's share is its part of the cells, so ``gains - delta * shares`` is what it speaks against a true
    difference ``delta``.
    """

    gains: Floats
    shares: Floats

    @property
    def value(self) -> float:
        """The difference itself."""
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
        """Number of patients of equal size that would know as much; 0 for one patient."""
        count = len(self.shares)
        return (count - 1) / count / float(self.shares @ self.shares) if count > 1 else 0.0


def of_shares(right: Floats, cells: Floats) -> Difference | None:
    """Return the difference of a share: ``right`` [patients] right calls more than the other model, of ``cells``.

    None when there are no cells. Patients without cells of the class say nothing and are left out.
    """
    there = cells > 0
    if not there.any():
        return None
    total = cells.sum()
    return Difference(right[there] / total, cells[there] / total)


def mean_of(
    one: Difference | None, two: Difference | None, has: tuple[npt.NDArray[np.bool_], ...]
) -> Difference | None:
    """Return the mean of two differences, each over the patients that ``has`` says, as one over all patients."""
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
    if ``sum of gains in S <= delta * sum of shares in S``. So the p value of delta is the share of subsets whose own
    difference is at most delta, the empty one (nothing flipped) included, and the bound is one of these differences.
    """
    count = len(difference.gains)
    if count <= COUNTED:
        chosen = (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    else:
        chosen = (np.random.default_rng(SEED).random((flips, count)) < 0.5).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (chosen @ difference.gains) / (chosen @ difference.shares)
    allowed = math.floor(level * (len(found) + 1) + 1e-9) - 1
    if allowed < 0:
        return -1.0, 1.0
    low = np.sort(np.where(np.isnan(found), -np.inf, found))[allowed]
    high = np.sort(np.where(np.isnan(found), np.inf, found))[::-1][allowed]
    return max(-1.0, float(low)), min(1.0, float(high))


def null_variance_bounds(difference: Difference, *, level: float) -> tuple[float, float]:
    """Return the one-sided bounds at ``level``: where ``value - delta`` is z standard errors under delta itself.

    ``(value - delta)^2 = z^2 n / (n - 1) sum((gains - delta shares)^2)``, a quadratic. Too few patients of too
    unequal sizes bound nothing, whatever they say: -1 and 1.
    """
    count = len(difference.gains)
    if count < 2:
        return -1.0, 1.0
    scale = float(norm.isf(level)) ** 2 * count / (count - 1)
    gains, shares, value = difference.gains, difference.shares, difference.value
    a = 1 - scale * float(shares @ shares)
    if a <= 0:
        return -1.0, 1.0
    half = value - scale * float(gains @ shares)
    c = value**2 - scale * float(gains @ gains)
    root = math.sqrt(max(0.0, half**2 - a * c))
    low, high = (half - root) / a, (half + root) / a
    # Rounding must not part a bound from a value that it stands on: all patients alike.
    return max(-1.0, min(low, value)), min(1.0, max(high, value))


def further_patients(method: str, distance: float, spread: tuple[float, float], patients: int, level: float) -> int:
    """Estimate how many more patients would show a difference that lies ``distance`` above its bound.

    ``spread`` is the standard error and the effective number of patients tonight; with k times the patients the one
    is divided by the square root of k and the other multiplied by k. ``method`` is "flips" or "variance".
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
    """Return the smallest true difference that sign flips would find above 0 at ``level`` with a power of 80%.

    None where the patients are too few to show any.
    """
    quantile = _quantile("flips", effective, level)
    if not (math.isfinite(quantile) and math.isfinite(error)):
        return None
    return error * (quantile + float(norm.isf(1 - POWER)))


def _quantile(method: str, effective: float, level: float) -> float:
    """Return how many standard errors a value must lie above its bound; infinite with too few patients.

    Sign flips come to Student's test when the contributions are normal (Lehmann & Romano 2005, section 15.2). The
    variance under the bound holds ``distance^2 / effective`` besides the error.
    """
    if method == "flips":
        if effective < -math.log2(level):
            return math.inf
        return float(t.isf(level, effective - 1))
    z = float(norm.isf(level))
    left = 1 - z**2 / effective if effective else -1.0
    return z / math.sqrt(left) if left > 0 else math.inf
