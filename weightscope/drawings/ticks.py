"""Where an axis has its marks, and what they say: plain text that any renderer can show."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

Ticks = list[tuple[float, str]]
"""Positions on the axis, ascending, and their labels."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = 3
"""Powers of ten up to this size are written out."""


def power_of_ten(exponent: int) -> str:
    """``10⁻³``, or ``0.01`` where that is shorter to read."""
    if -3 <= exponent <= _PLAIN:
        return f"{10.0**exponent:.{max(0, -exponent)}f}"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def log_ticks(low: float, high: float, most: int = 7) -> Ticks:
    """Marks of an axis whose coordinates are decimal logarithms.

    Args:
        low: Lower end, a logarithm.
        high: Upper end.
        most: So many marks at most.
    """
    decades = range(ceil(low - 1e-9), floor(high + 1e-9) + 1)
    if len(decades) > 2:
        step = -(-len(decades) // most)
        chosen = [k for k in decades if k % step == 0]
        powers = any(not -3 <= k <= _PLAIN for k in chosen)
        return [(float(k), _power(k) if powers else power_of_ten(k)) for k in chosen]
    parts: Sequence[int]
    for parts in (range(1, 10), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            (k + log10(m), _times(m, k))
            for k in range(floor(low), floor(high) + 1)
            for m in parts
            if low - 1e-9 <= k + log10(m) <= high + 1e-9
        ]
        if len(ticks) <= most:
            break
    if len(ticks) > 1:
        return ticks
    # less than a factor of two: the values themselves, evenly spaced
    return [(log10(v), label) for v, label in linear_ticks(10**low, 10**high, most) if v > 0]


def linear_ticks(low: float, high: float, most: int = 7) -> Ticks:
    """Marks at multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: Lower end.
        high: Upper end.
        most: So many marks at most.
    """
    span = high - low
    if not 0 < span < float("inf"):
        return [(low, f"{low:.3g}")]
    unit = 10.0 ** floor(log10(span / most))
    step = next(
        unit * factor
        for factor in (1, 2, 5, 10, 20, 50)
        if floor(high / (unit * factor) + 1e-9) - ceil(low / (unit * factor) - 1e-9) < most
    )
    places = max(0, -floor(log10(step) + 1e-9))
    first = ceil(low / step - 1e-9)
    values = [step * k for k in range(first, floor(high / step + 1e-9) + 1)]
    size = max(abs(low), abs(high))
    if size >= 1e5 or size < 1e-3:
        digits = max(0, floor(log10(size)) - floor(log10(step) + 1e-9))
        return [(value, _minus(_scientific(value, digits))) for value in values]
    return [(value, _minus(f"{value:.{places}f}")) for value in values]


def _scientific(value: float, digits: int) -> str:
    if not value:
        return "0"
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def _times(m: int, exponent: int) -> str:
    if m == 1:
        return power_of_ten(exponent)
    if -3 <= exponent <= _PLAIN:
        return f"{m * 10.0**exponent:.{max(0, -exponent)}f}"
    return f"{m}·10" + str(exponent).translate(_SUPERSCRIPTS)
