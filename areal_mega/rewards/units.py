r"""Units behind an answer: ``15\mbox{ cm}^2``, ``\$36``, ``18 dollars``, ``30^\circ``, ``25\%``.

A unit may be left out, and one this table does not know is not compared. Two that it knows must be the same.
"""

from __future__ import annotations

import re

from areal_mega.rewards.numbers import parse_number

_NAMES = {
    "percent": "percent percents pct",
    "dollar": "dollar dollars usd",
    "cent": "cent cents",
    "pound": "pound pounds lb lbs",
    "degree": "degree degrees deg",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mile miles",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "oz": "oz ounce ounces",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "gal": "gal gallon gallons",
    "s": "s sec second seconds",
    "min": "min minute minutes",
    "h": "h hr hour hours",
    "d": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years",
    "mph": "mph miles per hour",
}
_CANONICAL = {name: unit for unit, names in _NAMES.items() if unit != "mph" for name in names.split()}
_CANONICAL |= {"mph": "mph", "miles per hour": "mph"}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}

_WORDS = r"[A-Za-z][A-Za-z .'/-]*"
_POWER = r"(?:\^\s*\{?\s*([23])\s*\}?)?"
_TEXT_UNIT = re.compile(rf"(.*\S)\s*\\text\s*\{{\s*({_WORDS}?){_POWER}\s*\}}\s*{_POWER}", re.DOTALL)
_WORD_UNIT = re.compile(rf"(.*?[\d}}])\s*({_WORDS}){_POWER}", re.DOTALL)
_PERCENT = re.compile(r"(.*[^\s\\])\s*\\?%", re.DOTALL)
_DEGREE = re.compile(r"(.*\S)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*[CF]?", re.DOTALL)
_NO_UNITS = {"and", "or", "is", "if", "not", "mod", "pi", "i"}


def split_unit(text: str) -> tuple[str, str | None]:
    """The answer without its unit, and the unit: by its own name where it is known, "" where not, None without one."""
    if m := re.match(r"([+-]?)\s*\\?\$\s*(?=[\d.\\])", text):
        return m[1] + split_unit(text[m.end() :])[0], "dollar"
    if m := _PERCENT.fullmatch(text):
        return m[1].strip(), "percent"
    if m := _DEGREE.fullmatch(text):
        return m[1].strip(), "degree"
    if (m := _TEXT_UNIT.fullmatch(text)) and _is_unit(m[2]):
        return m[1].strip(), _canonical(m[2], m[3] or m[4])
    if (m := _WORD_UNIT.fullmatch(text)) and _is_unit(m[2]) and parse_number(m[1]) is not None and _is_word(m):
        return m[1].strip(), _canonical(m[2], m[3])
    return text, None


def contradict(one: str | None, other: str | None) -> bool:
    """Both units are known and are not the same."""
    return bool(one and other) and one != other


def _is_unit(words: str) -> bool:
    split = words.lower().split()
    return len(split) <= 4 and not _NO_UNITS.intersection(split)


def _is_word(m: re.Match[str]) -> bool:
    """Not a product of variables: a known unit of two letters or more, or a word that stands apart."""
    known = len(m[2]) > 1 and bool(_canonical(m[2], m[3]))
    return known or (len(m[2].split()[0]) > 2 and m.string[m.start(2) - 1].isspace())


def _canonical(words: str, power: str | None) -> str:
    words = words.lower().strip(" .")
    first, _, rest = words.partition(" ")
    if first in _POWERS and rest:
        words, power = rest, _POWERS[first]
    unit = _CANONICAL.get(words, "")
    return unit + power if unit and power else unit
