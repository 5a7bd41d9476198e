"""The map s -> clamp(p + q*s, lo, hi), which is one step, and the composition of such maps.

All functions work elementwise on tensors of any shape. A *segment* is a number of consecutive
steps. Composed, they are again one clamped affine map of the state s before the segment:

    F(s) = clamp(P + Q*s, min(E0, E1), max(E0, E1))

For q >= 0, p + q*clamp(y, L, H) = clamp(p + q*y, p + q*L, p + q*H); for q < 0 the bounds swap; and
a clamp of a clamp is one clamp. That is what makes the recurrence parallel in time, exactly.

Every step is monotone, so the bounds of F are the images E0 and E1 of the two ends of the states'
domain. `append` computes them by the recurrence itself, and `apply` sorts them. The kinds of
segment differ in what a segment of no steps is (`identity`) and in what `finish` still has to do:

    bounds      used by                                 `identity`: E0, E1  `finish` changes
    none        identity; the backward without a clip   not used            Q
    lo, u >= 0  relu                                    lo, not used        Q, E1 = inf, a NaN of P
    lo, u < 0   relu                                    lo, inf             Q, a NaN of E1, P finite
    lo and hi   hardtanh, relu6; the backward, clipped  lo, hi              Q, P finite

In `identity` P is 0 and Q is 1. A domain without an upper bound ends at infinity itself, because an
infinite state has to become what it becomes step by step. For the same reason `finish` replaces a Q
that was rounded to 0, although u is not 0: with it Q*inf would be NaN.

Growing segments. In a long segment with |u| > 1, Q = u**steps overflows, and P with it, though the
bounds keep every state small. A segment grows where |u|**steps exceeds 2**64 (2**512 in float64).
There, P and Q hold other numbers, S and R:

    F(s) = clamp((s - S) / R, ...)    R = 1/Q,  S = -P/Q    of no steps: S = 0, R = 1

S converges and R fades to 0, so nothing overflows, and a state before the segment that is above or
below the threshold S ends at one bound or the other. R is stored 2**64 times as large, so that it
does not become 0 while (s - S) / R is still finite. A state within rounding of S may end at the
other bound than it would step by step: there the number of chunks can decide.

Constant maps. A segment with a reset in it, or in the backward with an output at a bound, does not
depend on the state before it, be that NaN. Q = NaN marks such a segment: no later step changes
that, and apart from it only a NaN in u makes Q NaN. P is then the state after the segment.
"""

import triton
import triton.language as tl


@triton.jit
def largest_finite(dtype: tl.constexpr):
    """The largest finite number of a dtype."""
    return 1.7976931348623157e308 if dtype == tl.float64 else 3.4028234663852886e38


@triton.jit
def tanh(z):
    """tanh with a relative error of about 1e-7 (float32) or 1e-15 (float64), for z of any size."""
    # Near 0, where 1 - exp(-2|z|) cancels, Lambert's continued fraction z/(1 + z^2/(3 + z^2/...))
    # as far as the 13; at 0.6 its error is 2e-15.
    square = z * z
    numerator = z * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    denominator = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    small = tl.abs(z) < 0.6
    decay = tl.exp(-2.0 * tl.abs(z))
    numerator = tl.where(small, numerator, tl.where(z < 0.0, decay - 1.0, 1.0 - decay))
    return numerator / tl.where(small, denominator, 1.0 + decay)


@triton.jit
def clamp(z, lo, hi):
    """z limited to the bounds, each of which may be None. NaN stays NaN."""
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
def at_bound(h, lo, hi):
    """Where the stored output h is at a bound, so that no gradient passes. NaN lets it pass."""
    found = tl.zeros_like(h) != 0.0
    if lo is not None:
        found |= h <= lo
    if hi is not None:
        found |= h >= hi
    return found


@triton.jit
def growth_threshold(dtype: tl.constexpr):
    """The |Q| above which a segment grows: the root of the largest number, because P + Q*s has to
    have the same factor left."""
    return 1.3407807929942597e154 if dtype == tl.float64 else 1.8446744073709552e19


@triton.jit
def growing_above(steps, dtype: tl.constexpr):
    """The |u| above which a segment of this many steps grows."""
    EXPONENT: tl.constexpr = 512.0 if dtype == tl.float64 else 64.0
    return tl.exp2(EXPONENT / tl.maximum(steps, 1).to(tl.float32))


@triton.jit
def inverse_in_two_parts(u):
    """1/u as a sum of two numbers: over thousands of steps the rounding of one would show."""
    exact = 1.0 / u.to(tl.float64)
    head = exact.to(u.dtype)
    return head, (exact - head.to(tl.float64)).to(u.dtype)


@triton.jit
def identity(u, lo, hi, grows=None):
    """A segment of no steps, as (P, Q, E0, E1). grows: where P and Q hold S and R; None: nowhere.

    Without an upper bound, E1 is needed where u < 0 only.
    """
    P = tl.zeros_like(u)
    Q = P + 1.0
    E0 = P
    E1 = P
    if lo is not None:
        E0 += lo
        E1 += tl.where(u < 0.0, float("inf"), lo) if hi is None else hi
    if grows is not None:
        Q = tl.where(grows, growth_threshold(u.dtype), Q)
    return P, Q, E0, E1


@triton.jit
def append(p, q, P, Q, E0, E1, lo, hi, grows=None, inverse=None):
    """The segment (P, Q, E0, E1) followed by the step s -> clamp(p + q*s, lo, hi).

    grows: where P and Q hold S and R; None: nowhere. inverse: 1/q in two parts, for these.
    """
    if lo is not None:
        E0 = step(p, q, E0, lo, hi)
        E1 = step(p, q, E1, lo, hi)
    affine = step(p, q, P, None, None)
    if grows is None:
        P, Q = affine, q * Q
    else:
        R = Q * inverse[0] + Q * inverse[1]
        BITS: tl.constexpr = tl.int64 if R.dtype == tl.float64 else tl.int32
        negative = R.to(BITS, bitcast=True) < 0  # the sign bit, also of a zero that R faded to
        infinite = tl.abs(p) == float("inf")
        signed = tl.where(negative, -p, p)
        S = P - tl.where(infinite, signed, p * (R * (1.0 / growth_threshold(R.dtype))))
        # A constant map, Q = NaN, has no threshold S: its P goes on as a state.
        P, Q = tl.where(grows & (Q == Q), S, affine), tl.where(grows, R, q * Q)
    return P, Q, E0, E1


@triton.jit
def constant_where(mask, value, P, Q, E0, E1):
    """The segment (P, Q, E0, E1), replaced by the constant map s -> value where the mask is set."""
    P, E0, E1 = tl.where(mask, value, P), tl.where(mask, value, E0), tl.where(mask, value, E1)
    return P, tl.where(mask, float("nan"), Q), E0, E1


@triton.jit
def power(u, LEVELS: tl.constexpr):
    """u**(2**LEVELS), the Q of so many steps: finite, and 0 only where u is."""
    Q = u
    for _ in tl.static_range(LEVELS):
        Q = Q * Q
    return clamp(_without_underflow(Q, u, False), None, largest_finite(u.dtype))


@triton.jit
def _without_underflow(Q, u, odd):
    """Q, a power of u with an odd or even exponent. Where it was rounded to 0 although u is not 0,
    the smallest number that has Q's sign."""
    SMALLEST: tl.constexpr = 4.9406564584124654e-324 if u.dtype == tl.float64 else 1.4012984643e-45
    smallest = tl.full(u.shape, SMALLEST, u.dtype)
    smallest = tl.where((u < 0.0) & odd, -smallest, smallest)
    return tl.where((Q == 0.0) & (u != 0.0) & (tl.abs(u) < 1.0), smallest, Q)


@triton.jit
def finish(P, Q, E0, E1, u, odd, lo, hi, grows=None, ANY_NEGATIVE_U: tl.constexpr = True):
    """The segment (P, Q, E0, E1) as `apply` takes it; see the table at the head of this file.

    odd: whether the number of steps is odd. grows: where P and Q hold S and R; None: nowhere.
    ANY_NEGATIVE_U: False where no u is negative.
    """
    Q = _without_underflow(Q, u, odd)
    if lo is not None:
        # The P with which `apply` gives NaN for an infinite state: P + Q*s is then inf - inf.
        opposite = tl.zeros_like(P) - float("inf")
        if grows is not None:
            opposite = tl.where(grows, float("inf"), opposite)
        # Both drop a NaN. Where a state has to be NaN after the segment, E0 is NaN as well.
        finite = tl.minimum(tl.maximum(P, -largest_finite(P.dtype)), largest_finite(P.dtype))
        if hi is None:
            # P is NaN where one input is -inf and another one inf. Only an infinite state, which
            # meets the -inf, has to become NaN.
            P = tl.where(P == P, P, opposite)
            if ANY_NEGATIVE_U:
                # With u < 0 only the first step sees an infinite state: it gives -inf, which the
                # bound ends, or NaN if the first input is infinite. E1 tells, which started as inf.
                infinite_gives_nan = (E1 != E1) & (E0 == E0)
                E1 = tl.where(u < 0.0, tl.where(infinite_gives_nan, E0, E1), float("inf"))
                opposite = tl.where(odd, float("inf"), opposite)
                P = tl.where(u < 0.0, tl.where(infinite_gives_nan, opposite, finite), P)
            else:
                E1 = tl.zeros_like(P) + float("inf")
        else:
            P = finite
        if grows is not None:
            P = tl.where(Q != Q, E0, P)
    return P, Q, E0, E1


@triton.jit
def apply(
    P, Q, E0, E1, s, BOUNDED: tl.constexpr, grows=None, HAS_CONSTANTS: tl.constexpr = True
):  # fmt: skip
    """F(s), the state after a segment (P, Q, E0, E1) that `finish` returned.

    BOUNDED: whether the steps have a bound. grows: where P and Q hold S and R; None: nowhere.
    HAS_CONSTANTS: False where no segment is a constant map.
    """
    z = P + Q * s
    if grows is not None:
        above = s - P
        # Not the fast division of float32, which is undefined for what R may have become.
        end = tl.div_rn(above, Q) if P.dtype == tl.float32 else above / Q
        end *= growth_threshold(P.dtype)
        z = tl.where(grows, tl.where(above == 0.0, 0.0, end), z)
    if HAS_CONSTANTS:
        z = tl.where(Q != Q, P, z)
    if BOUNDED:
        lo = tl.minimum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        hi = tl.maximum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        z = clamp(z, lo, hi)
    return z
