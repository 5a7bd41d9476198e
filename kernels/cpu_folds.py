"""Chunks of time as single maps, and the state in which each chunk starts: see `clamped_affine`.

A chunk is folded into P, Q, E0, E1 for each channel, F(s) = clamp(P + Q * s, E0, E1) with E0 and E1
in either order. Where a recurrence has no bounds, E0 and E1 are not used. A chunk that forgets its
start has Q = NaN. The state of the backward is the message u * d. An infinite state counts as the
largest finite number from one chunk to the next.

Floor: a, or g and h, read once; for each element of relu's forward 3 multiplications.
"""

import numpy as np
from numba import njit

from .cpu_rows import clamp, flush, is_reset, lead, prefetch, row, time

# In a fold, numbers too small to be normal live for so many steps at most: to look each time costs
# as much as the fold.
_FLUSH = 16


@njit(inline="always")
def _power(base, exponent):
    result = type(base)(1)
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@njit(inline="always")
def _store(x, b, n0, n, chunk, P, Q, E0, E1, bounded, most):
    """The map of a chunk, without infinities in P and Q: P + Q*s shall form no inf - inf and no
    0*inf. Between bounds a NaN of P goes too: where it belongs there, E0 is NaN as well."""
    zero = type(most)(0)
    base = (b * (x.chunks - 1) + chunk) * 4 * x.N + n0
    to_P, to_Q = row(x.maps, base, n, zero), row(x.maps, base + x.N, n, zero)
    to_E0, to_E1 = row(x.maps, base + 2 * x.N, n, zero), row(x.maps, base + 3 * x.N, n, zero)
    for j in range(n):
        z = P[j]
        if bounded:
            z = -most if z != z else clamp(z, -most, most)
        to_P[j], to_Q[j], to_E0[j], to_E1[j] = z, clamp(Q[j], -most, most), E0[j], E1[j]


@njit(inline="always")
def store_end(x, b, n0, n, state):
    """Where chunk 0 ends."""
    P = row(x.maps, b * (x.chunks - 1) * 4 * x.N + n0, n, state[0])
    for j in range(n):
        P[j] = state[j]


@njit(inline="always")
def carry(x, b, n0, n, chunk, state, bounded, most):
    """state: that in which `chunk` (1 or later) starts."""
    zero = type(most)(0)
    for k in range(chunk):
        base = (b * (x.chunks - 1) + k) * 4 * x.N + n0
        P, Q = row(x.maps, base, n, zero), row(x.maps, base + x.N, n, zero)
        E0, E1 = row(x.maps, base + 2 * x.N, n, zero), row(x.maps, base + 3 * x.N, n, zero)
        for j in range(n):
            if k == 0:
                state[j] = P[j]
                continue
            z = P[j] if Q[j] != Q[j] else P[j] + Q[j] * clamp(state[j], -most, most)
            if bounded:
                z = clamp(z, min(E0[j], E1[j]), max(E0[j], E1[j]))
                z = E0[j] if E0[j] != E0[j] else z
                z = E1[j] if E1[j] != E1[j] else z
            state[j] = z


@njit(inline="always")
def fold_forward(x, b, n0, n, walk, chunk, maps, lo, hi, tiny, most):
    """walk: begin, length, start, stop, reverse; maps: P, Q, E0, E1, to be used as buffers."""
    begin, length, start, stop, reverse = walk
    zero = type(most)(0)
    bounded, top = lo > -np.inf, min(hi, most)
    P, Q, E0, E1 = maps[0], maps[1], maps[2], maps[3]
    u, bias = row(x.u, n0, n, zero), row(x.bias, n0, n, zero)
    forgets, some = False, stop > start  # no steps clamp nothing
    grows = hi == np.inf
    for j in range(n):
        grows &= u[j] >= zero
        P[j], E0[j], E1[j] = zero, lo if some else -most, top if some else most
    for i in range(start, stop):
        t = time(begin, length, i, reverse)
        ahead = time(begin, length, min(i + lead(n), stop - 1), reverse)
        prefetch(x.a, b * x.a_b + ahead * x.a_t + n0, n, zero)
        if is_reset(x, b, t):
            forgets = True
            for j in range(n):
                P[j], E0[j], E1[j] = zero, zero, zero
        a = row(x.a, b * x.a_b + t * x.a_t + n0, n, zero)
        if not bounded:
            for j in range(n):
                P[j] = a[j] + bias[j] + u[j] * P[j]
        elif grows:
            for j in range(n):
                p = a[j] + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
        else:
            for j in range(n):
                p = a[j] + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
                E1[j] = clamp(p + u[j] * E1[j], lo, top)
        if i % _FLUSH == 0:
            for j in range(n):
                P[j], E0[j], E1[j] = flush(P[j], tiny), flush(E0[j], tiny), flush(E1[j], tiny)
    for j in range(n):
        Q[j] = type(most)(np.nan) if forgets else _power(u[j], stop - start)
        if grows:
            E1[j] = E0[j] if E0[j] != E0[j] else type(most)(np.inf)
    _store(x, b, n0, n, chunk, P, Q, E0, E1, bounded, most)


@njit(inline="always")
def fold_backward(x, b, n0, n, walk, chunk, maps, lo, hi, clip, tiny, most):
    """As `fold_forward`, of the messages from later steps to earlier ones."""
    begin, length, start, stop, reverse = walk
    zero, one = type(most)(0), type(most)(1)
    nan, bounded = type(most)(np.nan), clip < np.inf
    P, Q, E0, E1 = maps[0], maps[1], maps[2], maps[3]
    u = row(x.u, n0, n, zero)
    for j in range(n):
        P[j], Q[j], E0[j], E1[j] = zero, one, -most, most
    for step in range(start, stop):
        t = time(begin, length, length - 1 - step, reverse)
        last = min(step + lead(n), stop - 1)
        ahead = time(begin, length, length - 1 - last, reverse)
        prefetch(x.g, b * x.g_b + ahead * x.g_t + n0, n, zero)
        prefetch(x.h, b * x.h_b + ahead * x.h_t + n0, n, zero)
        g = row(x.g, b * x.g_b + t * x.g_t + n0, n, zero)
        h = row(x.h, b * x.h_b + t * x.h_t + n0, n, zero)
        for j in range(n):
            outside = (h[j] <= lo) | (h[j] >= hi)
            z, q = g[j] + P[j], Q[j]
            P[j] = u[j] * (zero if outside else z)
            Q[j] = u[j] * (nan if outside else q)
        if bounded:
            for j in range(n):
                outside = (h[j] <= lo) | (h[j] >= hi)
                z0, z1 = clamp(g[j] + E0[j], -clip, clip), clamp(g[j] + E1[j], -clip, clip)
                E0[j] = u[j] * (zero if outside else z0)
                E1[j] = u[j] * (zero if outside else z1)
        if step % _FLUSH == 0:
            for j in range(n):
                P[j], Q[j] = flush(P[j], tiny), flush(Q[j], tiny)
                E0[j], E1[j] = flush(E0[j], tiny), flush(E1[j], tiny)
        if is_reset(x, b, t):
            for j in range(n):
                P[j], Q[j], E0[j], E1[j] = zero, nan, zero, zero
    _store(x, b, n0, n, chunk, P, Q, E0, E1, bounded, most)
