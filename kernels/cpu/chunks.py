"""Chunks of time: each summarized as one map, and the state in which each chunk starts.

A step maps the state s before it to clamp(p + u * s, lo, hi), with p = a_t + bias. Steps in a row
are again such a map, for each channel

    F(s) = clamp(P + Q * s, min(E0, E1), max(E0, E1))

where Q is u^steps and E0, E1 are the images of the two ends of the domain. To summarize a chunk is
to compute P, Q, E0 and E1 without knowing s; to propagate is to apply the maps of all earlier
chunks to the state in which the sequence starts. The idea is that of parallel prefix sums: Blelloch
1990, "Prefix sums and their applications", whose linear recurrences have no clamp.

Two special cases: a recurrence without bounds has no E1, and its E0 is F(0). A chunk whose end does
not depend on its start, as after a reset, has Q = NaN and is the constant E0.

In the backward the state is u * d, the gradient with respect to h_t that comes from later steps,
and a step maps it to u * clamp(m_t * (g_t + s), -c, c), in the letters of `loops`.

Large |Q|. Where |u|^steps is so large that P + Q * s could be inf - inf, the map is computed as
F(s) = clamp((s - S) * Q, min(E0, E1), max(E0, E1)), and S is stored in the place of P. With
R = |u|^-steps, which tends to 0, a step s -> p + u * s makes

    R' = R / u        S' = S - p * R'        from S = 0, R = 1

and a step s -> u * (g + s) of the backward

    S' = S - g * R    R' = R / u

Chunks without a known end. A map of finite numbers cannot say what an infinite state or a NaN
becomes. And where |Q| > 2^10, rounding decides the result for a state s close to S: closer than
some units in the last place of s or of A, the sum of all |p * R| that S is made of. The end of such
a chunk is unknown until the chunk has run. Then this chunk runs on to the end of its sequence, in
the place of all later chunks. So the number of chunks never decides whether a state, or a gradient
of a or h0, is finite. The gradients of u and of a bias are sums, of which a part may overflow.

Shapes: the summaries are (B, chunks - 1, 5, N), with P or S, Q, E0, E1 and A of each chunk but the
last. Of chunk 0 there is its end alone, in the place of P.
Floor: one read of a, or of grad_h and h; for each element of relu's forward 2 multiplications, or 3
where some u of the channel block is negative.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .arithmetic import clamp, flush_subnormal, power, to_float
from .indexing import channels_at, elements, is_reset, prefetch, prefetch_distance, with_steps

# A summary flushes its subnormal numbers every so many steps. Every step would double its time.
_FLUSH_INTERVAL = 16
# From this |Q| on, a state that is close to S makes the end of its chunk unknown.
_LARGE_Q = 1024.0


class Summary(NamedTuple):
    """Buffers (block_size,) for the map of one chunk."""

    P: np.ndarray
    Q: np.ndarray
    E0: np.ndarray
    E1: np.ndarray
    S: np.ndarray
    R: np.ndarray
    A: np.ndarray


@njit(forceinline=True)
def summary_buffers(size, zero):
    buffers = np.empty((7, size), type(zero))
    return Summary(
        buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], buffers[5], buffers[6]
    )


@njit(forceinline=True)
def _is_threshold(Q, limits):
    """Whether S is stored in the place of P: |Q| > 2^64 in float32, 2^512 in float64."""
    return abs(Q) > np.sqrt(limits.largest)


@njit(forceinline=True)
def _any_large_q(u, count, steps):
    """Whether any of `count` channels might get |Q| > `_LARGE_Q`.

    The factor 2 is for Q itself, which other operations compute and round.
    """
    is_large = False
    for j in range(count):
        is_large |= abs(2 * np.float64(power(u[j], steps))) > _LARGE_Q
    return is_large


@njit(forceinline=True)
def _stored(args, chunk, index, which, like):
    """Number `which` of P, Q, E0, E1 and A in the summary of chunk `index` of the same item."""
    first = ((chunk.b * (args.chunks - 1) + index) * 5 + which) * args.N + chunk.channel
    return elements(args.summaries, first, chunk.count, like)


@njit(forceinline=True)
def _store(args, chunk, summary, limits):
    like = limits.largest
    P, Q = _stored(args, chunk, chunk.index, 0, like), _stored(args, chunk, chunk.index, 1, like)
    E0, E1 = _stored(args, chunk, chunk.index, 2, like), _stored(args, chunk, chunk.index, 3, like)
    A = _stored(args, chunk, chunk.index, 4, like)
    for j in range(chunk.count):
        P[j] = summary.S[j] if _is_threshold(summary.Q[j], limits) else summary.P[j]
        Q[j], E0[j], E1[j] = summary.Q[j], summary.E0[j], summary.E1[j]
        A[j] = summary.A[j]


@njit(forceinline=True)
def store_end(args, chunk, state):
    """Stores the state after chunk 0."""
    P = _stored(args, chunk, 0, 0, state[0])
    for j in range(chunk.count):
        P[j] = state[j]


@njit(forceinline=True)
def propagate(args, chunk, state, end, lowest, bounded, limits):
    """Writes to `state` the state in which a chunk starts that is not the first one.

    end: a buffer like `state`. lowest: the state whose image is E0.

    Returns the chunk with the steps that it runs, and whether they reach the end of the sequence.
    They do for the last chunk and for the first one whose end is unknown. Chunks after that one run
    no steps, and their `state` is of no use.
    """
    largest = limits.largest
    first_end = _stored(args, chunk, 0, 0, largest)
    for j in range(chunk.count):
        end[j] = first_end[j]
    for index in range(1, chunk.index + 1):
        for j in range(chunk.count):
            state[j] = end[j]
        if index == args.chunks - 1:
            return with_steps(chunk, chunk.start, chunk.length), True
        P, Q = _stored(args, chunk, index, 0, largest), _stored(args, chunk, index, 1, largest)
        E0, E1 = _stored(args, chunk, index, 2, largest), _stored(args, chunk, index, 3, largest)
        A = _stored(args, chunk, index, 4, largest)
        is_known = True
        for j in range(chunk.count):
            s, z = state[j], E0[j]
            if Q[j] == Q[j]:
                is_known &= (abs(s) <= largest) & (abs(P[j]) <= largest)
                if abs(Q[j]) <= _LARGE_Q:
                    z = P[j] + Q[j] * s
                elif s != lowest:
                    if _is_threshold(Q[j], limits):
                        z, distance = (s - P[j]) * Q[j], abs(s - P[j])
                    else:
                        z = P[j] + Q[j] * s
                        distance = abs(z / Q[j])
                    is_known &= distance > limits.tolerance * (abs(s) + A[j])
                if bounded:
                    z = clamp(z, min(E0[j], E1[j]), max(E0[j], E1[j]))
            is_known &= abs(z) <= largest
            end[j] = z
        if not is_known and index == chunk.index:
            return with_steps(chunk, chunk.start, chunk.length), True
        if not is_known:
            return with_steps(chunk, chunk.start, chunk.start), False
    return chunk, False


@njit(inline="always")
def summarize_forward_chunk(args, chunk, a, bias, summary, lo, hi, limits):
    """Stores the map of a chunk from the state before it to the state after it."""
    zero, one, largest, tiny = type(lo)(0), type(lo)(1), limits.largest, limits.tiny
    bounded, has_upper_bound = lo == lo, hi == hi
    top = hi if has_upper_bound else largest
    P, Q, E0, E1, S, R, A = summary
    n, steps = chunk.count, chunk.stop - chunk.start
    u = elements(args.u, chunk.channel, n, zero)
    any_reset, any_large_q = False, _any_large_q(u, n, steps)
    # Where u >= 0 and there is no upper bound, the upper image stays infinite.
    has_upper_image = has_upper_bound
    for j in range(n):
        has_upper_image |= not u[j] >= zero
        P[j], S[j], R[j], A[j] = zero, zero, one, zero
        # A chunk of no steps is the identity: it clamps nothing.
        E0[j], E1[j] = lo if steps > 0 else -largest, top if steps > 0 else largest
    distance = prefetch_distance(chunk)
    for step in range(chunk.start, chunk.stop):
        prefetch(a, chunk, step, distance)
        if is_reset(args, chunk, step):
            any_reset = True
            for j in range(n):
                P[j], E0[j], E1[j] = zero, zero, zero
        a_t = channels_at(a, chunk, step)
        if not bounded:
            for j in range(n):
                P[j] = to_float(a_t[j]) + bias[j] + u[j] * P[j]
        elif not has_upper_image:
            for j in range(n):
                p = to_float(a_t[j]) + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
        else:
            for j in range(n):
                p = to_float(a_t[j]) + bias[j]
                P[j] = p + u[j] * P[j]
                E0[j] = clamp(p + u[j] * E0[j], lo, hi)
                E1[j] = clamp(p + u[j] * E1[j], lo, top)
        if any_large_q:
            for j in range(n):
                R[j] /= u[j]
                term = (to_float(a_t[j]) + bias[j]) * R[j]
                S[j] -= term
                A[j] += abs(term)
        if step % _FLUSH_INTERVAL == 0:
            for j in range(n):
                P[j], R[j] = flush_subnormal(P[j], tiny), flush_subnormal(R[j], tiny)
                E0[j], E1[j] = flush_subnormal(E0[j], tiny), flush_subnormal(E1[j], tiny)
    for j in range(n):
        Q[j] = type(lo)(np.nan) if any_reset else power(u[j], steps)
        if not bounded:
            E0[j] = P[j]
        if not has_upper_bound and u[j] >= zero and not any_reset:
            E1[j] = np.inf
    _store(args, chunk, summary, limits)


@njit(inline="always")
def summarize_backward_chunk(args, chunk, grad_h, h, summary, lo, hi, limits):
    """Stores the map of a chunk from u * d after it in time to u * d before it in time."""
    zero, one, largest, tiny = type(lo)(0), type(lo)(1), limits.largest, limits.tiny
    nan, clip = type(lo)(np.nan), type(lo)(args.grad_clip)
    bounded = clip < np.inf
    P, Q, E0, E1, S, R, A = summary
    n = chunk.count
    u = elements(args.u, chunk.channel, n, zero)
    any_large_q = _any_large_q(u, n, chunk.stop - chunk.start)
    for j in range(n):
        P[j], Q[j], E0[j], E1[j] = zero, one, -largest, largest
        S[j], R[j], A[j] = zero, one, zero
    distance = prefetch_distance(chunk)
    for step in range(chunk.start, chunk.stop):
        prefetch(grad_h, chunk, step, distance)
        prefetch(h, chunk, step, distance)
        g_t, h_t = channels_at(grad_h, chunk, step), channels_at(h, chunk, step)
        for j in range(n):
            at_bound = (to_float(h_t[j]) <= lo) | (to_float(h_t[j]) >= hi)
            z, q = to_float(g_t[j]) + P[j], Q[j]
            P[j] = u[j] * (zero if at_bound else z)
            Q[j] = u[j] * (nan if at_bound else q)
        if bounded:
            for j in range(n):
                at_bound = (to_float(h_t[j]) <= lo) | (to_float(h_t[j]) >= hi)
                z = to_float(g_t[j])
                z0, z1 = clamp(z + E0[j], -clip, clip), clamp(z + E1[j], -clip, clip)
                E0[j] = u[j] * (zero if at_bound else z0)
                E1[j] = u[j] * (zero if at_bound else z1)
        if any_large_q:
            for j in range(n):
                term = to_float(g_t[j]) * R[j]
                S[j] -= term
                A[j] += abs(term)
                R[j] /= u[j]
        if step % _FLUSH_INTERVAL == 0:
            for j in range(n):
                P[j], Q[j] = flush_subnormal(P[j], tiny), flush_subnormal(Q[j], tiny)
                E0[j], E1[j] = flush_subnormal(E0[j], tiny), flush_subnormal(E1[j], tiny)
                R[j] = flush_subnormal(R[j], tiny)
        if is_reset(args, chunk, step):
            for j in range(n):
                P[j], Q[j], E0[j], E1[j] = zero, nan, zero, zero
    if not bounded:
        for j in range(n):
            E0[j] = P[j]
    _store(args, chunk, summary, limits)
