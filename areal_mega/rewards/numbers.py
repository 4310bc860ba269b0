r"""Numbers as people write them: ``1,234``, ``-\frac{3}{4}``, ``1\frac12``, ``2\times10^{-3}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# A rounded decimal is accepted for a value it cannot write down, from so many significant digits on.
ROUNDED_DIGITS = 6

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}?\.\d+|{_DIGITS}\.?)"
_EXPONENT = r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d+))|[eE]([+-]?\d+))?"
_GROUP = r"(?:\{\s*(-?\d+)\s*\}|(\d))"
_FORMS = {
    "decimal": re.compile(rf"({_DECIMAL}){_EXPONENT}"),
    "fraction": re.compile(rf"(?:({_DIGITS})\s*(?:\+\s*)?)?\\frac\s*{_GROUP}\s*{_GROUP}"),
    "slash": re.compile(rf"(?:({_DIGITS})\s+)?({_DIGITS})\s*/\s*({_DIGITS})"),
}  # fmt: skip
# A power of ten beyond it is no answer that anyone means, and costs memory.
_LARGEST_EXPONENT = 400
_LONGEST = 1000


@dataclass(frozen=True)
class Number:
    """value: exactly as written. places: decimals behind the point, None for a fraction. digits: significant ones."""

    value: Fraction
    places: int | None
    digits: int

    def equals(self, other: Number) -> bool:
        """Equal, or one is the other rounded to what a decimal can hold: 0.333333 for a third, not 0.33."""
        if self.value == other.value:
            return True
        if (self.places is None) == (other.places is None):
            return False
        exact, rounded = (self, other) if self.places is None else (other, self)
        assert rounded.places is not None
        never_ends = exact.value.denominator
        for prime in (2, 5):
            while never_ends % prime == 0:
                never_ends //= prime
        error = abs(exact.value - rounded.value)
        return never_ends > 1 and rounded.digits >= ROUNDED_DIGITS and error * 10**rounded.places <= Fraction(1, 2)


def parse_number(text: str) -> Number | None:
    """The number that the whole text writes; None where it is anything else."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    sign = 1
    while text[:1] in ("-", "+", "−", "–"):
        sign, text = (sign if text[0] == "+" else -sign), text[1:].lstrip()
    if m := _FORMS["decimal"].fullmatch(text):
        digits = m[1].replace(",", "")
        exponent = int(next((e for e in m.groups()[1:] if e), 0))
        if abs(exponent) > _LARGEST_EXPONENT:
            return None
        places = len(digits.partition(".")[2])
        value = sign * Fraction(digits) * Fraction(10) ** exponent
        return Number(value, places - exponent if exponent < places else 0, len(digits.replace(".", "").lstrip("0")))
    if m := _FORMS["fraction"].fullmatch(text):
        whole, numerator, denominator = m[1], m[2] or m[3], m[4] or m[5]
    elif m := _FORMS["slash"].fullmatch(text):
        whole, numerator, denominator = m.groups()
    else:
        return None
    over, under = (int(n.replace(",", "")) for n in (numerator, denominator))
    if under == 0 or (whole and over < 0):
        return None
    return Number(sign * (int((whole or "0").replace(",", "")) + Fraction(over, under)), None, 0)
