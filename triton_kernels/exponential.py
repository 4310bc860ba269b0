"""e^x with the digits that differences from it need, for blocks of tokens or logits.

The scheme of csrc/cpu/exponential.h: x = n ln2 + r with |r| <= ln2 / 2, and
e^x = 2^n (1 + r + r^2 (1/2! + r/3! + ...)).
"""

from math import factorial

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)

# n ln2_high is exact for all n that come up here; the series ends below the rounding of the type.
_LN2_HIGH_32 = tl.constexpr(float.fromhex("0x1.63p-1"))
_LN2_LOW_32 = tl.constexpr(float.fromhex("-0x1.bd0106p-13"))
_TERMS_32 = tl.constexpr(8)
_LN2_HIGH_64 = tl.constexpr(float.fromhex("0x1.62e42feep-1"))
_LN2_LOW_64 = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
_TERMS_64 = tl.constexpr(14)
_INVERSE_FACTORIALS = tl.constexpr(tuple(1 / factorial(k) for k in range(15)))


@triton.jit
def exponential(x):
    """e^x, e^x - 1 and e^x - 1 - x, the latter without cancellation near 0; x in +-80 or NaN, float32 or float64."""
    wide: tl.constexpr = x.dtype == tl.float64
    ln2_high: tl.constexpr = _LN2_HIGH_64 if wide else _LN2_HIGH_32
    ln2_low: tl.constexpr = _LN2_LOW_64 if wide else _LN2_LOW_32
    terms: tl.constexpr = _TERMS_64 if wide else _TERMS_32
    n = tl.floor(x * _LOG2E + 0.5)
    r = x - n * ln2_high - n * ln2_low
    series = r * _INVERSE_FACTORIALS[terms] + _INVERSE_FACTORIALS[terms - 1]
    for k in tl.static_range(terms - 2, 1, -1):
        series = series * r + _INVERSE_FACTORIALS[k]
    beyond_linear = r * r * series
    if wide:
        scale = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    scaled = scale * (r + beyond_linear)
    minus_one = scaled + (scale - 1)
    return scaled + scale, minus_one, tl.where(n == 0, beyond_linear, minus_one - x)
