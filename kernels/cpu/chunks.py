"""Chunks of time as single maps, and the state in which each chunk starts: see `clamped_affine`.

A chunk is folded into four numbers for each channel, F(s) = clamp(P + Q * s, E0, E1) with E0 and E1
in either order: the images of the two ends of the domain. A recurrence without bounds has no E1,
and its E0 is F(0). A chunk that forgets its start has Q = NaN and is the constant E0. The state of
the backward is u * d, the gradient that reaches h_t from later steps.

Where |Q| = |u|^steps is so large that P + Q * s could be inf - inf, the chunk is a threshold,
F(s) = clamp((s - S) * Q, E0, E1), and S stands in the place of P: with R = |u|^-steps, which fades,

    R' = R / u        S' = S - p * R'        from S = 0, R = 1, for a step s -> p + u * s

A map of finite numbers says nothing about infinities and NaN. And where |Q| > 2^10, rounding
decides where a state next to S goes: it is too near where |s - S| is small beside |s| and A, the
sum of the |p * R| of which S is made. There the end of a chunk is unknown before the chunk has run:
it runs, and all later ones after it, as if time had not been cut. So the number of chunks never
decides whether a result is finite.

The backward's maps are s -> u * (g + s): there R' and S' change places, S' = S - g * R.

Floor: a, or g and h, read once; for each element of relu's forward 3 multiplications.
"""

import numpy as np
from numba import njit

from .indexing import clamp, flush, is_reset, lead, prefetch, read, row, time

# In a fold, numbers too small to be normal live for so many steps at most: to look each time costs
# as much as the fold.
_FLUSH = 16
# From this |Q| on it is looked how near a state is to S.
_GROWN = 1024.0


@njit(inline="always")
def _power(u, exponent):
    """In float64, as each square doubles the relative error of all before it."""
    base, result = np.float64(u), np.float64(1)
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return type(u)(result)


@njit(inline="always")
def _is_large(Q, limits):
    """Whether the map of a chunk is a threshold: |Q| > 2^64 in float32, 2^512 in float64."""
    return abs(Q) > np.sqrt(limits.most)


@njit(inline="always")
def _any_grows(u, n, steps):
    """Whether any of n channels might have a Q of more than `_GROWN`; 2: Q is rounded in another
    way here."""
    grows = False
    for j in range(n):
        grows |= abs(2 * np.float64(_power(u[j], steps))) > _GROWN
    return grows


@njit(inline="always")
def _store(x, b, n0, n, chunk, maps, limits):
    zero = type(limits.most)(0)
    P, Q, E0, E1, S, A = maps[0], maps[1], maps[2], maps[3], maps[4], maps[6]
    base = (b * (x.chunks - 1) + chunk) * 5 * x.N + n0
    to_P, to_Q = row(x.maps, base, n, zero), row(x.maps, base + x.N, n, zero)
    to_E0, to_E1 = row(x.maps, base + 2 * x.N, n, zero), row(x.maps, base + 3 * x.N, n, zero)
    to_A = row(x.maps, base + 4 * x.N, n, zero)
    for j in range(n):
        to_P[j] = S[j] if _is_large(Q[j], limits) else P[j]
        to_Q[j], to_E0[j], to_E1[j], to_A[j] = Q[j], E0[j], E1[j], A[j]


@njit(inline="always")
def store_end(x, b, n0, n, state):
    """Where chunk 0 ends."""
    P = row(x.maps, b * (x.chunks - 1) * 5 * x.N + n0, n, state[0])
    for j in range(n):
        P[j] = state[j]


@njit(inline="always")
def carry(x, b, n0, n, chunk, state, end, lowest, bounded, limits):
    """state: that in which `chunk` (1 or later) starts; end: used as a buffer; lowest: the state
    of which E0 is the image.

    Returns the first chunk, up to this one, whose end is unknown, as that of the last one always
    is: it runs to the end of the sequence. If it is an earlier one than `chunk`, so is `state`.
    """
    most, zero = limits.most, type(limits.most)(0)
    first = row(x.maps, b * (x.chunks - 1) * 5 * x.N + n0, n, zero)
    for j in range(n):
        end[j] = first[j]
    for k in range(1, chunk + 1):
        for j in range(n):
            state[j] = end[j]
        if k == x.chunks - 1:
            return k
        base = (b * (x.chunks - 1) + k) * 5 * x.N + n0
        P, Q = row(x.maps, base, n, zero), row(x.maps, base + x.N, n, zero)
        E0, E1 = row(x.maps, base + 2 * x.N, n, zero), row(x.maps, base + 3 * x.N, n, zero)
        A = row(x.maps, base + 4 * x.N, n, zero)
        known = True
        for j in range(n):
            s, z = state[j], E0[j]
            if Q[j] == Q[j]:
                known &= (abs(s) <= most) & (abs(P[j]) <= most)
                if abs(Q[j]) <= _GROWN:
                    z = P[j] + Q[j] * s
                elif s != lowest:
                    if _is_large(Q[j], limits):
                        z, distance = (s - P[j]) * Q[j], abs(s - P[j])
                    else:
                        z = P[j] + Q[j] * s
                        distance = abs(z / Q[j])
                    known &= distance > limits.near * (abs(s) + A[j])
                if bounded:
                    z = clamp(z, min(E0[j], E1[j]), max(E0[j], E1[j]))
            known &= abs(z) <= most
            end[j] = z
        if not known:
            return k
    return x.chunks


@njit(inline="always")
def fold_forward(x, b, n0, n, walk, chunk, maps, lo, hi, limits, like):
    """walk: begin, length, start, stop, reverse; maps: buffers for P, Q, E0, E1, S, R, A."""
    begin, length, start, stop, reverse = walk
    zero, one, most, tiny = type(lo)(0), type(lo)(1), limits.most, limits.tiny
    bounded, top = lo > -np.inf, min(hi, most)
    P, Q, E0, E1, S, R, A = maps[0], maps[1], maps[2], maps[3], maps[4], maps[5], maps[6]
    u, bias = row(x.u, n0, n, zero), row(x.bias, n0, n, zero)
    forgets, some = False, stop > start  # no steps clamp nothing
    grows, rising = _any_grows(u, n, stop - start), hi == np.inf
    for j in range(n):
        rising &= u[j] >= zero
        P[j], S[j], R[j], A[j] = zero, zero, one, zero
        E0[j], E1[j] = lo if some else -most, top if some else most
    for i in range(start, stop):
        t = time(begin, length, i, reverse)
        ahead = time(begin, length, min(i + lead(n), stop - 1), reverse)
        prefetch(x.a, b * x.a_b + ahead * x.a_t + n0, n, like)
        if is_reset(x, b, t):
            forgets = True
            for j in range(n):
                P[j], E0[j], E1[j] = zero, zero, zero
        a = row(x.a, b * x.a_b + t * x.a_t + n0, n, like)
        if not bounded:
            for j in range(n):
                P[j] = read(a[j]) + bias[j] + u[j] * P[j]
        elif rising:
            for j in range(n):
                p = read(a[j]) + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
        else:
            for j in range(n):
                p = read(a[j]) + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
                E1[j] = clamp(p + u[j] * E1[j], lo, top)
        if grows:
            for j in range(n):
                R[j] /= u[j]
                term = (read(a[j]) + bias[j]) * R[j]
                S[j] -= term
                A[j] += abs(term)
        if i % _FLUSH == 0:
            for j in range(n):
                P[j], E0[j], E1[j] = flush(P[j], tiny), flush(E0[j], tiny), flush(E1[j], tiny)
                R[j] = flush(R[j], tiny)
    for j in range(n):
        Q[j] = type(lo)(np.nan) if forgets else _power(u[j], stop - start)
        if not bounded:
            E0[j] = P[j]
        if hi == np.inf and u[j] >= zero and not forgets:
            E1[j] = hi
    _store(x, b, n0, n, chunk, maps, limits)


@njit(inline="always")
def fold_backward(x, b, n0, n, walk, chunk, maps, lo, hi, clip, limits, like):
    """As `fold_forward`, of the gradients u * d from later steps to earlier ones."""
    begin, length, start, stop, reverse = walk
    zero, one, most, tiny = type(lo)(0), type(lo)(1), limits.most, limits.tiny
    nan, bounded = type(lo)(np.nan), clip < np.inf
    P, Q, E0, E1, S, R, A = maps[0], maps[1], maps[2], maps[3], maps[4], maps[5], maps[6]
    u = row(x.u, n0, n, zero)
    grows = _any_grows(u, n, stop - start)
    for j in range(n):
        P[j], Q[j], E0[j], E1[j], S[j], R[j], A[j] = zero, one, -most, most, zero, one, zero
    for step in range(start, stop):
        t = time(begin, length, length - 1 - step, reverse)
        last = min(step + lead(n), stop - 1)
        ahead = time(begin, length, length - 1 - last, reverse)
        prefetch(x.g, b * x.g_b + ahead * x.g_t + n0, n, like)
        prefetch(x.h, b * x.h_b + ahead * x.h_t + n0, n, like)
        g = row(x.g, b * x.g_b + t * x.g_t + n0, n, like)
        h = row(x.h, b * x.h_b + t * x.h_t + n0, n, like)
        for j in range(n):
            outside = (read(h[j]) <= lo) | (read(h[j]) >= hi)
            z, q = read(g[j]) + P[j], Q[j]
            P[j] = u[j] * (zero if outside else z)
            Q[j] = u[j] * (nan if outside else q)
        if bounded:
            for j in range(n):
                outside = (read(h[j]) <= lo) | (read(h[j]) >= hi)
                z = read(g[j])
                z0, z1 = clamp(z + E0[j], -clip, clip), clamp(z + E1[j], -clip, clip)
                E0[j] = u[j] * (zero if outside else z0)
                E1[j] = u[j] * (zero if outside else z1)
        if grows:
            for j in range(n):
                term = read(g[j]) * R[j]
                S[j] -= term
                A[j] += abs(term)
                R[j] /= u[j]
        if step % _FLUSH == 0:
            for j in range(n):
                P[j], Q[j], R[j] = flush(P[j], tiny), flush(Q[j], tiny), flush(R[j], tiny)
                E0[j], E1[j] = flush(E0[j], tiny), flush(E1[j], tiny)
        if is_reset(x, b, t):
            for j in range(n):
                P[j], Q[j], E0[j], E1[j] = zero, nan, zero, zero
    if not bounded:
        for j in range(n):
            E0[j] = P[j]
    _store(x, b, n0, n, chunk, maps, limits)
