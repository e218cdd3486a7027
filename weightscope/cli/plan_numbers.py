"""Numbers as people write them in the options of a plan."""

from __future__ import annotations

from weightscope.errors import OptionError


def parse_share(text: str | None) -> float | None:
    """Per cent of a share such as ``25%`` or ``25``.

    Raises:
        OptionError: It is none, or a bare number below 1, which is more likely a ratio.
    """
    if text is None:
        return None
    digits = text.strip().removesuffix("%").strip()
    if not digits.replace(".", "", 1).isdecimal():
        raise OptionError(f"--top {text!r}: give a share, such as 25%")
    share = float(digits)
    if 0 < share < 1 and not text.strip().endswith("%"):
        raise OptionError(f"--top {digits}: is {digits} per cent; did you mean {100 * share:g}%?")
    return share


def parse_params(text: str | None) -> int | None:
    """A number of parameters such as ``500000``, ``500k``, ``2M`` or ``1.5G``.

    Raises:
        OptionError: It is none.
    """
    if text is None:
        return None
    units = {"k": 10**3, "M": 10**6, "G": 10**9}
    digits, factor = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not digits.replace(".", "", 1).isdecimal():
        raise OptionError(f"--budget {text!r}: give a number of parameters, such as 500000 or 2M")
    return round(float(digits) * factor)


def parse_ratio(option: str, text: str | None) -> float | None:
    """A ratio such as ``0.7`` or ``70%``.

    Raises:
        OptionError: It is none.
    """
    if text is None:
        return None
    digits = text.strip().removesuffix("%").strip()
    if not digits.replace(".", "", 1).isdecimal():
        raise OptionError(f"{option} {text!r}: give a ratio, such as 0.7 or 70%")
    return float(digits) / (100 if text.strip().endswith("%") else 1)
