"""A sign test of pairs that may be read after each of them; by which versions of a model are compared.

A sign assumes nothing of a metric's scale or distribution. A fixed-sample p-value may not be read after each pair; an
e-value may. Under H0, at most half of the pairs that are not equal are wins, the likelihood ratio of p > 1/2 against
1/2 is a supermartingale for each p, and so is its mean over p uniform in (1/2, 1]:

    e(k, n) = 2^(n+1) ∫ p^k (1 − p)^(n−k) dp   over 1/2 … 1   =   Σ_{i ≤ k} C(n+1, i) / ((n+1)·C(n, k))

for k wins of n. By Ville's inequality P(e ≥ 1/α at any time) ≤ α: peeking costs nothing (Ramdas, Grünwald, Vovk,
Shafer 2023, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38; the mixture is that
of Robbins 1970, Annals of Mathematical Statistics 41).
"""

from collections.abc import Collection
from math import comb

_TRIMMED = 0.1


def e_value(wins: int, losses: int) -> float:
    """The evidence against "a win is no more likely than a loss": exact, of whole numbers until the last division."""
    n = wins + losses
    term = total = 1
    for i in range(wins):  # C(n+1, i+1) from C(n+1, i): a large trial is judged each second
        term = term * (n + 1 - i) // (i + 1)
        total += term
    return _capped(total, (n + 1) * comb(n, wins))


def _capped(dividend: int, divisor: int) -> float:
    """The quotient, at most 10^12: more would say nothing, and may have no float."""
    return 1e12 if dividend >= 10**12 * divisor else dividend / divisor


def trimmed_mean(each: Collection[float]) -> float:
    """The mean without the tenth that is lowest and the tenth that is highest; 0 of nothing."""
    out = int(_TRIMMED * len(each))
    kept = sorted(each)[out : len(each) - out]
    return sum(kept) / len(kept) if kept else 0.0
