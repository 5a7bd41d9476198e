"""The map s -> clamp(p + q*s, lo, hi) and runs of such maps, for tensors of any shape.

One step of the recurrence is such a map, and so is a run of steps: F(s) = clamp(P + Q*s, L, H). For
q >= 0, p + q*clamp(y, L, H) = clamp(p + q*y, p + q*L, p + q*H), for q < 0 the bounds swap, and a
clamp of a clamp is one clamp. That is what makes the recurrence parallel in time, exactly.

Every step is monotone, so L and H are the images E0, E1 of the two ends of the domain, in either
order. While a run is folded step by step, E0 and E1 are carried by the recurrence itself, and are
sorted once, when F is applied. A bound may be None; without bounds, E0 and E1 are not used.

A run with a reset in it, or with a gradient that a bound stopped, forgets its start, be it NaN. It
has Q = NaN, which no later step changes and which nothing else but a NaN of u makes. An infinite
state counts as the largest finite number from one run to the next.
"""

import triton
import triton.language as tl


@triton.jit
def largest(dtype: tl.constexpr):
    """The largest finite number of the accumulator's type: bounds of a fold are never infinite."""
    return 1.7976931348623157e308 if dtype == tl.float64 else 3.4028234663852886e38


@triton.jit
def tanh(z):
    """tanh to about 1e-7 (float32) or 1e-15 (float64), relative, for z of any size."""
    # Near 0, where 1 - exp(-2|z|) cancels, Lambert's continued fraction z/(1 + z^2/(3 + z^2/...))
    # up to the 13, which at 0.6 is off by 2e-15.
    square = z * z
    numerator = z * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    denominator = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    small = tl.abs(z) < 0.6
    decay = tl.exp(-2.0 * tl.abs(z))
    numerator = tl.where(small, numerator, tl.where(z < 0.0, decay - 1.0, 1.0 - decay))
    return numerator / tl.where(small, denominator, 1.0 + decay)


@triton.jit
def clamp(z, lo, hi):
    """z between bounds, each of which may be None. NaN stays NaN."""
    if lo is not None:
        z = tl.maximum(z, lo, propagate_nan=tl.PropagateNan.ALL)
    if hi is not None:
        z = tl.minimum(z, hi, propagate_nan=tl.PropagateNan.ALL)
    return z


@triton.jit
def step(p, q, s, lo, hi, TANH: tl.constexpr = False):
    """One step of the recurrence: clamp(p + q*s, lo, hi), or tanh(p + q*s)."""
    z = p + q * s
    if TANH:
        z = tanh(z)
    return clamp(z, lo, hi)


@triton.jit
def stopped(h, lo, hi):
    """Where the stored output h is at a bound, so that no gradient passes. NaN lets it pass."""
    at_bound = tl.zeros_like(h) != 0.0
    if lo is not None:
        at_bound |= h <= lo
    if hi is not None:
        at_bound |= h >= hi
    return at_bound


@triton.jit
def identity(u, lo, hi):
    """The run of no steps: P, Q and the ends of the domain.

    Without an upper bound the images of the upper end are bounds where u < 0 only, and elsewhere
    are not followed. Half of the largest number, times such a u, is not infinite at once.
    """
    P = tl.zeros_like(u)
    E0 = P
    E1 = P
    if lo is not None:
        E0 += lo
        E1 += tl.where(u < 0.0, 0.5 * largest(u.dtype), lo) if hi is None else hi
    return P, P + 1.0, E0, E1


@triton.jit
def append(p, q, P, Q, E0, E1, lo, hi):
    """The run (P, Q, E0, E1) followed by one step."""
    if lo is not None:
        E0 = step(p, q, E0, lo, hi)
        E1 = step(p, q, E1, lo, hi)
    return step(p, q, P, None, None), q * Q, E0, E1


@triton.jit
def constant(where, value, P, Q, E0, E1):
    """The run (P, Q, E0, E1), but where told, the constant map to `value`."""
    P, E0, E1 = tl.where(where, value, P), tl.where(where, value, E0), tl.where(where, value, E1)
    return P, tl.where(where, float("nan"), Q), E0, E1


@triton.jit
def finish(P, Q, E0, E1, u, lo, hi):
    """The run ready for `apply`: without infinities in P and Q, so that P + Q*s forms no inf - inf
    and no 0*inf, and with the bound of maps that have none above.

    Between bounds a NaN of P goes too: where it belongs there, E0 is NaN as well.
    """
    most = largest(P.dtype)
    if lo is not None:
        P = tl.minimum(tl.maximum(P, -most), most)
        if hi is None:
            E1 = tl.where(u < 0.0, E1, most)
    return P, clamp(Q, -most, most), E0, E1


@triton.jit
def apply(P, Q, E0, E1, s, BOUNDED: tl.constexpr):
    """F(s) of a folded run."""
    z = tl.where(Q != Q, P, P + Q * s)
    if BOUNDED:
        lo = tl.minimum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        hi = tl.maximum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        z = clamp(z, lo, hi)
    return z
