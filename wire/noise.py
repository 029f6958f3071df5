"""Noise of differential privacy on a grid, drawn exactly, and what it costs.

Floating-point noise leaks by its last bits (Mironov, CCS 2012), and a generator that is not cryptographic can be
predicted. So sums and noise are integers here, from bytes of a cryptographic generator. Two distributions:

- **The rounded Gaussian**, round(N(0, σ²)). Added to an integer vector, it is the Gaussian mechanism with its result
  rounded, which is post-processing: its cost is that of the Gaussian mechanism, exactly (`gaussian_epsilon`).
- **The discrete Gaussian**, P(k) ∝ exp(−k²/2σ²) (Canonne, Kamath, Steinke, NeurIPS 2020, arXiv:2004.00010). A sum of
  its draws by several parties is almost one again, so it serves as distributed noise (`noise_share`); its cost is
  counted in zero-concentrated differential privacy (`zcdp_epsilon`).

Draws are exact: from tables of 128 bits, and a rejection that is decided in floating point only if no rounding error
can matter. What remains is the rounding of the tables, a total variation below 2^−110 for each value.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Entropy = Callable[[int], bytes]
"""A number of uniform bytes: in production `os.urandom`, or a stream cipher keyed by it."""
Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

WIDEST = 2.0**32
"""Largest standard deviation, so that all products fit 64 bits."""
FINEST = 2.0**8
"""Smallest standard deviation of a rounded Gaussian: finer ones need blocks of less than an integer."""
_TAIL = 15
"""Standard deviations that the table covers: beyond them lies less than 2^−160."""
_FINE = 9
"""Binary logarithm of the blocks in one standard deviation, at most."""
_DIGITS = 80
_AT_ONCE = 2**17
"""Values drawn at a time, which bounds the memory beside the result."""
_ERROR = 2.0**-48
"""Bound of the rounding errors of an acceptance probability in float64, and of its comparison with 53 bits."""
_WORD = 64
MOST_VALUES = 2**26
"""Most values of a vector with distributed noise, unless the number is known."""


def rounded_gaussian(deviation: float, size: int, entropy: Entropy) -> Integers:
    """Independent draws of round(N(0, deviation²)), int64 of shape (size,).

    Args:
        deviation: σ in steps of the grid, from 256 on.
        size: number of values.
        entropy: must be cryptographic if the values are to protect.

    Raises:
        ValueError: the deviation is out of range.
    """
    if not FINEST <= deviation <= WIDEST:
        raise ValueError(f"rounded noise has a standard deviation of 2^8 to 2^32 steps, not {deviation:g}.")
    return _drawn(deviation, size, entropy, rounded=True)


def discrete_gaussian(deviation: float, size: int, entropy: Entropy) -> Integers:
    """Independent draws of the discrete Gaussian, int64 of shape (size,); see `rounded_gaussian`.

    Raises:
        ValueError: the deviation is not above 0, or above 2^32.
    """
    if not 0 < deviation <= WIDEST:
        raise ValueError(f"discrete noise has a standard deviation above 0 and at most 2^32 steps, not {deviation:g}.")
    return _drawn(deviation, size, entropy, rounded=False)


def _drawn(deviation: float, size: int, entropy: Entropy, *, rounded: bool) -> Integers:
    result = np.empty(size, np.int64)
    done = 0
    while done < size:
        some = _some(deviation, min(size - done, _AT_ONCE), entropy, rounded=rounded)
        result[done : done + some.size] = some
        done += some.size
    return result


def _some(deviation: float, size: int, entropy: Entropy, *, rounded: bool) -> Integers:
    """At most `size` draws: a magnitude by its block and its place there, less what is rejected.

    A block [j·2^b, (j+1)·2^b) is drawn in proportion to the density at its beginning, the place in it uniformly, and
    the magnitude m is kept with probability exp(−(m² − (j·2^b)²)/2σ²). The place has a fraction, from which m is
    rounded; a discrete Gaussian has none, and half of its zeros are rejected, because −0 is 0.
    """
    bits = max(math.frexp(deviation)[1] - _FINE, 0)
    first = _blocks(deviation, bits, size, entropy) << bits
    word = np.frombuffer(entropy(8 * size), "<u8")
    negative = (word & np.uint64(1)).astype(bool)
    places = (word >> np.uint64(1)) if rounded else (word >> np.uint64(1)) & np.uint64(2**bits - 1)
    below = _WORD - 1 - bits if rounded else 0
    """Bits of the fraction, the lowest of the place."""
    magnitudes = first + ((places + np.uint64(2**below >> 1)) >> np.uint64(below)).astype(np.int64)
    kept = _accepted(places, below, first, deviation, entropy) if bits or rounded else np.ones(size, bool)
    if not rounded:
        kept &= ~(negative & (magnitudes == 0))
    return np.where(negative, -magnitudes, magnitudes)[kept]


@lru_cache(maxsize=8)
def _table(deviation: float, bits: int) -> tuple[npt.NDArray[np.uint64], list[int]]:
    """The cumulative probabilities of the blocks in units of 2^−128: their upper 64 bits, and whole."""
    with localcontext() as context:
        context.prec = _DIGITS
        ratio = (-Decimal(4**bits) / (2 * Decimal(deviation) ** 2)).exp()
        weight, factor, square = Decimal(1), ratio, ratio * ratio
        sums, total = [], Decimal(0)
        for _ in range(math.ceil(_TAIL * deviation / 2**bits) + 1):
            total += weight
            sums.append(total)
            weight *= factor  # exp(−(j+1)²c) = exp(−j²c)·exp(−(2j+1)c)
            factor *= square
        whole = [int(each / total * 2**128) for each in sums[:-1]]
    return np.array([value >> _WORD for value in whole], np.uint64), whole


def _blocks(deviation: float, bits: int, size: int, entropy: Entropy) -> Integers:
    upper, whole = _table(deviation, bits)
    drawn = np.frombuffer(entropy(8 * size), "<u8")
    found = np.searchsorted(upper, drawn, side="right")
    # Where the upper halves are equal, the lower ones decide.
    for at in np.flatnonzero(found != np.searchsorted(upper, drawn, side="left")):
        found[at] = bisect_right(whole, int(drawn[at]) << _WORD | int.from_bytes(entropy(8)))
    return found.astype(np.int64)


def _accepted(
    places: npt.NDArray[np.uint64], below: int, first: Integers, deviation: float, entropy: Entropy
) -> npt.NDArray[np.bool_]:
    """Which magnitudes are kept, by their places, with `below` bits of a fraction, and the starts of their blocks."""
    place: _Floats = np.ldexp(places.astype(np.float64), -below)
    exponents = place * (place + 2 * first) / (2 * deviation**2)
    drawn = np.frombuffer(entropy(8 * places.size), "<u8")
    left = np.exp(-exponents) - (drawn >> np.uint64(11)) * 2.0**-53
    kept: npt.NDArray[np.bool_] = left > 0
    for at in np.flatnonzero(np.abs(left) < _ERROR):
        kept[at] = _below(int(drawn[at]), (int(places[at]), below), int(first[at]), deviation, entropy)
    return kept


def _below(drawn: int, place: tuple[int, int], first: int, deviation: float, entropy: Entropy) -> bool:
    """Whether a uniform number, of which 64 bits are drawn, is below the acceptance probability of a place."""
    (number, below), bits = place, _WORD
    with localcontext() as context:
        context.prec = _DIGITS

        def bound(number: int) -> Decimal:
            exact = Decimal(number) / 2**below
            exponent: Decimal = -exact * (exact + 2 * first) / (2 * Decimal(deviation) ** 2)
            scaled: Decimal = exponent.exp() * 2**bits
            return scaled

        # Until the intervals of both, of what is drawn so far, lie apart; 80 digits bear three words.
        while bits <= 3 * _WORD:
            if drawn + 1 <= bound(number + 1 if below else number):
                return True
            if drawn >= bound(number):
                return False
            drawn, bits = drawn << _WORD | int.from_bytes(entropy(8)), bits + _WORD
            if below:
                number, below = number << _WORD | int.from_bytes(entropy(8)), below + _WORD
        return False


# ---------------------------------------------------------------------------- accounting


def gaussian_rho(sensitivity: float, deviation: float) -> float:
    """ρ = Δ²/2σ² of one use of a Gaussian mechanism. It adds up over uses, of different Δ and σ too."""
    return (sensitivity / deviation) ** 2 / 2


@lru_cache(maxsize=4096)
def gaussian_epsilon(rho: float, delta: float) -> float:
    """ε at a δ of uses of the Gaussian mechanism, rounded or not, that cost ρ together.

    They cost as much as one with Δ/σ = µ = √(2ρ) (Dong, Roth, Su, JRSS-B 2022), whose exact trade-off is
    δ = Φ(µ/2 − ε/µ) − e^ε·Φ(−µ/2 − ε/µ) (Balle, Wang, ICML 2018, Theorem 8).
    """
    if rho in {0.0, math.inf}:
        return rho
    mu = math.sqrt(2 * rho)

    def failing(epsilon: float) -> float:
        tail = math.erfc((mu / 2 + epsilon / mu) / math.sqrt(2)) / 2
        again = math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0  # without it, the result is an upper bound
        return math.erfc((epsilon / mu - mu / 2) / math.sqrt(2)) / 2 - again

    if failing(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while failing(high) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if failing(middle) > delta else (low, middle)
    return high


def zcdp_epsilon(rho: float, delta: float) -> float:
    """ε at a δ of ρ-zero-concentrated differential privacy: any mechanism, so more than `gaussian_epsilon`.

    inf over α > 1 of ρα + log(1 − 1/α) − log(αδ)/(α − 1) (Canonne, Kamath, Steinke, Proposition 12).
    """
    if rho in {0.0, math.inf}:
        return rho

    def at(log_order: float) -> float:
        above = math.exp(log_order)
        return rho * (1 + above) + math.log(above / (1 + above)) - (math.log(delta) + math.log1p(above)) / above

    # Any α gives a valid ε; the best one is near this.
    centre = math.log(math.log(1 / delta) / rho) / 2
    low, high = centre - 4, centre + 4
    for _ in range(100):
        third = (high - low) / 3
        low, high = (low, high - third) if at(low + third) <= at(high - third) else (low + third, high)
    return max(at((low + high) / 2), 0.0)


# ------------------------------------------------------------------- distributed noise


def share_deviation(total: float, honest: int) -> float:
    """Standard deviation of one device's share, if the shares of `honest` devices are to have `total` together.

    `honest` is K_min − t for groups of at least K_min devices of which t may disclose their shares, or send none.

    Raises:
        ValueError: there is no honest device, or the share is below half a step, where the accounting ends.
    """
    if honest < 1:
        raise ValueError("distributed noise needs at least one honest device: K_min must be above t.")
    share = total / math.sqrt(honest)
    if share < 0.5:
        raise ValueError(f"a share of {share:g} steps of the grid is too coarse: at least 0.5 are needed.")
    return share


def noise_share(total: float, honest: int, size: int, entropy: Entropy) -> Integers:
    """One device's share of distributed noise, int64 of shape (size,), to be added to its integers before its mask."""
    return discrete_gaussian(share_deviation(total, honest), size, entropy)


@lru_cache(maxsize=64)
def shared_rho(sensitivity: float, total: float, honest: int, size: int = MOST_VALUES) -> float:
    """ρ of a sum with the shares of `honest` devices, against anyone who knows all other shares.

    A sum of discrete Gaussians is almost a discrete Gaussian: ρ = (Δ/σ + τ·√d)²/2 with τ = 10·Σ exp(−2π²s²·k/(k+1))
    over k from 1 to n − 1, for n shares of deviation s = σ/√n (Kairouz, Liu, Steinke, ICML 2021, arXiv:2102.06387,
    Proposition 14). From s = 2 steps on, τ is below 1e−15 for a hundred devices.

    Args:
        sensitivity: Δ, the largest L2 norm of one device's integers.
        total: σ.
        honest: n.
        size: d, the number of values.

    Raises:
        ValueError: there is no honest device, or the shares are too coarse for this accounting.
    """
    square = share_deviation(total, honest) ** 2
    tau = 10 * math.fsum(math.exp(-2 * math.pi**2 * square * k / (k + 1)) for k in range(1, honest))
    return (sensitivity / total + tau * math.sqrt(size)) ** 2 / 2
