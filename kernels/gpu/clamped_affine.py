"""The map s -> clamp(p + q*s, lo, hi) and runs of such maps, for tensors of any shape.

One step of the recurrence is such a map, and so is a run of steps: F(s) = clamp(P + Q*s, L, H). For
q >= 0, p + q*clamp(y, L, H) = clamp(p + q*y, p + q*L, p + q*H), for q < 0 the bounds swap, and a
clamp of a clamp is one clamp. That is what makes the recurrence parallel in time, exactly.

Every step is monotone, so L and H are the images E0, E1 of the two ends of the domain, in either
order. While a run is folded step by step, E0 and E1 are carried by the recurrence itself, and are
sorted once, when F is applied. A bound may be None; without bounds, E0 and E1 are not used.

Growing runs: Q = u**steps overflows in a long run of |u| > 1, and P with it, though the bounds keep
every state small. Where |u|**steps passes 2**64 (2**512 in float64), P and Q hold S and R instead,
with F(s) = clamp((s - S) / R, L, H): S converges, R = 1/Q fades to 0, and a start above or below
the threshold S ends at one bound or the other. R is kept 2**64 times as large, so that it does not
fade while (s - S) / R is still finite.

A start within rounding of S may end at the other bound than it would step by step: there the number
of chunks can decide.

Infinities: a run gives what its steps would give one by one. An infinite state stays infinite by
Q*inf, and so Q does not fade to 0 unless u is 0, of which the steps make NaN. The upper end of a
domain without an upper bound is infinity itself.

A run with a reset in it, or with a gradient that a bound stopped, forgets its start, be it NaN. It
has Q = NaN, which no later step changes and which nothing else but a NaN of u makes.
"""

import triton
import triton.language as tl


@triton.jit
def largest(dtype: tl.constexpr):
    """The largest finite number of a type."""
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
def without_infinities(h, alone):
    """The stored output h [N, T], finite in columns `alone`, and stopped where h is.

    A number inside of every nonlinearity's bounds stands for infinities and NaN, at which nothing
    is stopped either.
    """
    return tl.where(alone[None, :] & ~(tl.abs(h) <= largest(h.dtype)), 0.5, h)


@triton.jit
def growth(dtype: tl.constexpr):
    """The Q from which on a run is one that grows; P + Q*s has the same factor left to grow by."""
    return 1.3407807929942597e154 if dtype == tl.float64 else 1.8446744073709552e19


@triton.jit
def growth_limit(steps, dtype: tl.constexpr):
    """The |u| above which a run of so many steps grows."""
    LEVELS: tl.constexpr = 512.0 if dtype == tl.float64 else 64.0
    return tl.exp2(LEVELS / tl.maximum(steps, 1).to(tl.float32))


@triton.jit
def inverse_of(u):
    """1 / u as a sum of two numbers: over thousands of steps the rounding of one would show."""
    exact = 1.0 / u.to(tl.float64)
    head = exact.to(u.dtype)
    return head, (exact - head.to(tl.float64)).to(u.dtype)


@triton.jit
def identity(u, lo, hi, grows=None):
    """The run of no steps: P, Q and the ends of the domain. `grows`: where S and R stand for P, Q.

    Without an upper bound the images of the upper end are bounds where u < 0 only, and elsewhere
    are not followed.
    """
    P = tl.zeros_like(u)
    Q = P + 1.0
    E0 = P
    E1 = P
    if lo is not None:
        E0 += lo
        E1 += tl.where(u < 0.0, float("inf"), lo) if hi is None else hi
    if grows is not None:
        Q = tl.where(grows, growth(u.dtype), Q)
    return P, Q, E0, E1


@triton.jit
def append(p, q, P, Q, E0, E1, lo, hi, grows=None, inverse=None):
    """The run (P, Q, E0, E1) followed by one step. inverse: that of q, for runs that grow."""
    if lo is not None:
        E0 = step(p, q, E0, lo, hi)
        E1 = step(p, q, E1, lo, hi)
    affine = step(p, q, P, None, None)
    if grows is None:
        P, Q = affine, q * Q
    else:
        R = Q * inverse[0] + Q * inverse[1]
        BITS: tl.constexpr = tl.int64 if R.dtype == tl.float64 else tl.int32
        negative = R.to(BITS, bitcast=True) < 0  # also of a zero, to which R may have faded
        infinite = tl.abs(p) == float("inf")
        signed = tl.where(negative, -p, p)
        S = P - tl.where(infinite, signed, p * (R * (1.0 / growth(R.dtype))))
        # A run that forgets its start has no threshold.
        P, Q = tl.where(grows & (Q == Q), S, affine), tl.where(grows, R, q * Q)
    return P, Q, E0, E1


@triton.jit
def constant(where, value, P, Q, E0, E1):
    """The run (P, Q, E0, E1), but where told, the constant map to `value`."""
    P, E0, E1 = tl.where(where, value, P), tl.where(where, value, E0), tl.where(where, value, E1)
    return P, tl.where(where, float("nan"), Q), E0, E1


@triton.jit
def power(u, LEVELS: tl.constexpr):
    """u**(2**LEVELS), as the Q of a run: finite, and not 0 unless u is."""
    Q = u
    for _ in tl.static_range(LEVELS):
        Q = Q * Q
    return clamp(_unfaded(Q, u, False), None, largest(u.dtype))


@triton.jit
def _unfaded(Q, u, odd):
    """Q, but the smallest number with Q's sign instead of a zero that only rounding made."""
    SMALLEST: tl.constexpr = 4.9406564584124654e-324 if u.dtype == tl.float64 else 1.4012984643e-45
    smallest = tl.full(u.shape, SMALLEST, u.dtype)
    smallest = tl.where((u < 0.0) & odd, -smallest, smallest)
    return tl.where((Q == 0.0) & (u != 0.0) & (tl.abs(u) < 1.0), smallest, Q)


@triton.jit
def finish(P, Q, E0, E1, u, odd, lo, hi, grows=None, FALLS: tl.constexpr = True):
    """The run ready for `apply`. odd: its number of steps is. FALLS: some u may be negative.

    Without an upper bound E1 becomes the bound of maps that have none, and where an infinite start
    gives NaN and finite ones do not, P becomes the infinity that meets Q*inf as inf - inf. Between
    bounds a NaN of P goes: where it belongs there, E0 is NaN as well.
    """
    Q = _unfaded(Q, u, odd)
    if lo is not None:
        opposite = tl.zeros_like(P) - float("inf")
        if grows is not None:
            opposite = tl.where(grows, float("inf"), opposite)
        finite = tl.minimum(tl.maximum(P, -largest(P.dtype)), largest(P.dtype))
        if hi is None:
            # Where an infinite start meets an input of -inf, be it before or after one of inf.
            P = tl.where(P == P, P, opposite)
            if FALLS:
                # Only the first step sees the infinite start: NaN where its input is infinite too.
                lost = (E1 != E1) & (E0 == E0)
                E1 = tl.where(u < 0.0, tl.where(lost, E0, E1), float("inf"))
                opposite = tl.where(odd, float("inf"), opposite)
                P = tl.where(u < 0.0, tl.where(lost, opposite, finite), P)
            else:
                E1 = tl.zeros_like(P) + float("inf")
        else:
            P = finite
        if grows is not None:
            P = tl.where(Q != Q, E0, P)
    return P, Q, E0, E1


@triton.jit
def apply(
    P, Q, E0, E1, s, BOUNDED: tl.constexpr, grows=None, FORGETS: tl.constexpr = True
):  # fmt: skip
    """F(s) of a folded run. FORGETS: some run may forget its start."""
    z = P + Q * s
    if grows is not None:
        above = s - P
        # Not the fast division of float32, which is undefined for what R may have become.
        end = tl.div_rn(above, Q) if P.dtype == tl.float32 else above / Q
        end *= growth(P.dtype)
        z = tl.where(grows, tl.where(above == 0.0, 0.0, end), z)
    if FORGETS:
        z = tl.where(Q != Q, P, z)
    if BOUNDED:
        lo = tl.minimum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        hi = tl.maximum(E0, E1, propagate_nan=tl.PropagateNan.ALL)
        z = clamp(z, lo, hi)
    return z
