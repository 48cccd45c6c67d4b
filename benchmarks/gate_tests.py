"""The tests that were candidates for the gate, all one-sided, vectorised over holdouts.

Each takes contributions of patients and returns by how much it believes: the p value of "the difference is not above
``bound``". References: cluster bootstrap: Field & Welsh 2007 (JRSS B 69:369); Student's tail for it: Hesterberg 2015
(Am. Stat. 69:371); bootstrap-t: Cameron, Gelbach & Miller 2008 (REStat 90:414); sign flips of score contributions:
Hemerik, Goeman & Finos 2020 (JRSS B 82:841); paired clustered proportions: Obuchowski 1998 (Stat. Med. 17:1495) and
Durkalski et al. 2003 (Stat. Med. 22:2417); cluster-robust CR2 and its degrees of freedom: Bell & McCaffrey 2002
(Surv. Methodol. 28:169), Imbens & Kolesar 2016 (REStat 98:701); CR3: the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import norm, t

from benchmarks.populations import Holdouts

DRAWS = 4_000
Question = tuple[str, float]  # what is compared: "balanced", "sensitivity" or "specificity"; and the bound to be above


class Parts:
    """One question on many holdouts: differences ``d`` and cells ``n``, each [classes, holdouts, patients]."""

    def __init__(self, h: Holdouts, question: Question) -> None:
        what, self.bound = question
        d = np.stack([h.challenger[0] - h.champion[0], h.challenger[1] - h.champion[1]]).astype(float)
        n = np.stack([h.positives, h.negatives]).astype(float)
        self.weights = np.array({"balanced": [0.5, 0.5], "sensitivity": [1.0, 0.0], "specificity": [0.0, 1.0]}[what])[
            :, None
        ]
        # The question is shifted so that it reads "above 0": every cell of a class gets its share of the bound.
        self.d, self.n = d - self.bound * n, n
        self.totals = n.sum(axis=2)
        self.shares = self.d.sum(axis=2) / self.totals
        self.value = (self.weights * self.shares).sum(axis=0)
        self.patients = n.shape[2]

    def influence(self, power: float = 0.0) -> Any:
        """Linearised contributions [holdouts, patients]; ``power`` 0.5 is CR2, 1 is CR3."""
        h = self.n / self.totals[..., None]
        left = (self.d - self.shares[..., None] * self.n) / self.totals[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(h < 1, left / (1 - h) ** power, 0)
        return (self.weights[..., None] * scaled).sum(axis=0)


def _tail(value: Any, error: Any, df: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        p = t.sf(value / error, df) if df is not None else norm.sf(value / error)
    # No variance at all is no evidence: whoever sees one patient, or no discordant cell, cannot reject.
    return np.where(error > 0, p, 1.0)


def robust(power: float, df: str) -> Callable[[Parts], Any]:
    """Return the linearised ratio estimator with a cluster-robust variance and Student's tail."""

    def test(parts: Parts) -> Any:
        z = parts.influence(power)
        scale = parts.patients / (parts.patients - 1) if power == 0 else 1.0
        error = np.sqrt(scale * (z**2).sum(axis=1))
        if df == "n-1":
            return _tail(parts.value, error, parts.patients - 1)
        return _tail(parts.value, error, bell_mccaffrey(parts, {"BM": 0.0, "IK": 1.0}[df]))

    return test


def bell_mccaffrey(parts: Parts, alike: float) -> Any:
    """Degrees of freedom of the CR2 variance; ``alike`` 0: cells are independent, 1: a patient's cells move together.

    ``tr(G)^2 / tr(G^2)``; in each class G is ``diag(a) (S - h s' - s h' + sum(s) h h') diag(a)`` with h the patients'
    shares of the cells and s the variances of their totals.
    """
    total = np.zeros((*parts.n.shape[1:], parts.n.shape[2]))
    for side in (0, 1):
        h = parts.n[side] / parts.totals[side][:, None]
        a = parts.weights[side, 0] / parts.totals[side][:, None] / np.sqrt(np.maximum(1 - h, 1e-9))
        s = parts.n[side] ** (1 + alike)
        inner = s.sum(axis=1)[:, None, None] * h[:, :, None] * h[:, None, :]
        inner -= h[:, :, None] * s[:, None, :] + s[:, :, None] * h[:, None, :]
        inner += s[:, :, None] * np.eye(parts.patients)
        total += a[:, :, None] * inner * a[:, None, :]
    trace = np.einsum("sii->s", total)
    return np.maximum(trace**2 / np.maximum((total**2).sum(axis=(1, 2)), 1e-300), 1.0)


def obuchowski(parts: Parts) -> Any:
    """Variance under the null hypothesis, normal tail."""
    x = (parts.weights[..., None] * parts.d / parts.totals[..., None]).sum(axis=0)
    return _tail(parts.value, np.sqrt(parts.patients / (parts.patients - 1) * (x**2).sum(axis=1)), None)


def durkalski(parts: Parts) -> Any:
    """Every patient counts the same, however many cells it has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = (parts.weights[..., None] * np.where(parts.n > 0, parts.d / parts.n, 0)).sum(axis=0)
    return _tail(x.sum(axis=1), np.sqrt((x**2).sum(axis=1)), None)


def _signs(patients: int) -> Any:
    return np.where(np.random.default_rng(5).random((DRAWS - 1, patients)) < 0.5, -1.0, 1.0)


def sign_flip(parts: Parts) -> Any:
    """The models change names in whole patients; exact where that changes nothing."""
    x = (parts.weights[..., None] * parts.d / parts.totals[..., None]).sum(axis=0)
    return _flipped(x)


def score_flip(parts: Parts) -> Any:
    """Sign flips of score contributions: a trade of sensitivity for specificity is taken out first."""
    if not parts.weights.all():
        return sign_flip(parts)
    trade = (parts.shares[0] - parts.shares[1]) / 2
    d = parts.d - np.stack([trade, -trade])[..., None] * parts.n
    return _flipped((parts.weights[..., None] * d / parts.totals[..., None]).sum(axis=0))


def _flipped(x: Any) -> Any:
    flips = _signs(x.shape[1])
    found = np.empty(len(x))
    for start in range(0, len(x), 500):
        part = x[start : start + 500]
        # A little room for rounding: equal sums count as at least as large.
        found[start : start + 500] = (flips @ part.T >= part.sum(axis=1) - 1e-12).sum(axis=0)
    return (found + 1) / (len(flips) + 1)


def bootstraps(parts: Parts, levels: tuple[float, ...]) -> dict[str, Any]:
    """Percentile, widened percentile and bootstrap-t: bool [levels, holdouts] each, whether the bound is passed."""
    rng = np.random.default_rng(20_130)
    w = rng.multinomial(parts.patients, np.full(parts.patients, 1 / parts.patients), size=DRAWS).astype(float)
    sims = len(parts.value)
    found = {name: np.zeros((len(levels), sims), bool) for name in ("bootstrap", "bootstrap widened", "bootstrap-t")}
    factors = [
        math.sqrt(parts.patients / (parts.patients - 1)) * t.isf(a, parts.patients - 1) / norm.isf(a) for a in levels
    ]
    plain = parts.influence()
    error = np.sqrt((plain**2).sum(axis=1))
    for s in range(sims):
        n, d = parts.n[:, s], parts.d[:, s]
        columns = [n[0], n[1], d[0], d[1]]
        columns += [d[0] ** 2, d[0] * n[0], n[0] ** 2, d[1] ** 2, d[1] * n[1], n[1] ** 2]
        columns += [d[0] * d[1], d[0] * n[1], n[0] * d[1], n[0] * n[1]]
        m = (w @ np.stack(columns, axis=1)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            s0, s1 = m[2] / m[0], m[3] / m[1]
            w0, w1 = parts.weights[0, 0], parts.weights[1, 0]
            drawn = w0 * s0 + (w1 * s1 if w1 else 0)
            squares = w0**2 * (m[4] - 2 * s0 * m[5] + s0**2 * m[6]) / m[0] ** 2
            if w1:
                squares += w1**2 * (m[7] - 2 * s1 * m[8] + s1**2 * m[9]) / m[1] ** 2
                squares += 2 * w0 * w1 * (m[10] - s0 * m[12] - s1 * m[11] + s0 * s1 * m[13]) / (m[0] * m[1])
            student = (drawn - parts.value[s]) / np.sqrt(np.maximum(squares, 0))
        drawn = drawn[np.isfinite(drawn)]
        # A draw without any variance would be infinitely far away: it counts as such on its side.
        student = np.where(np.isnan(student), 0, student)
        lows = np.quantile(drawn, levels)
        tops = np.quantile(student, [1 - a for a in levels], method="higher")
        for i in range(len(levels)):
            found["bootstrap"][i, s] = lows[i] > 0
            found["bootstrap widened"][i, s] = parts.value[s] + (lows[i] - parts.value[s]) * factors[i] > 0
            found["bootstrap-t"][i, s] = error[s] > 0 and parts.value[s] - tops[i] * error[s] > 0
    return found


TESTS: dict[str, Callable[[Parts], Any]] = {
    "sign flips": sign_flip,
    "sign flips of scores": score_flip,
    "Obuchowski": obuchowski,
    "Durkalski": durkalski,
    "robust CR1, t(n-1)": robust(0, "n-1"),
    "robust CR2, t(n-1)": robust(0.5, "n-1"),
    "robust CR2, t(BM)": robust(0.5, "BM"),
    "robust CR2, t(IK)": robust(0.5, "IK"),
    "robust CR3, t(n-1)": robust(1, "n-1"),
    "robust CR3, t(IK)": robust(1, "IK"),
}


def rejections(parts: Parts, levels: tuple[float, ...]) -> dict[str, Any]:
    """Return for every method bool [levels, holdouts]: whether the difference was found above its bound."""
    p_values = {name: test(parts) for name, test in TESTS.items()}
    found = {name: np.stack([p <= level for level in levels]) for name, p in p_values.items()}
    # A class without cells in a holdout: no method may pass it.
    for name in found:
        found[name] &= np.isfinite(parts.value)
    return found
