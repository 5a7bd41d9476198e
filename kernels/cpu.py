"""The recurrence on a CPU, forward and backward: loops compiled by numba.

    forward   h_t = clamp(a_t + b + u * h_{t-1}, lo, hi), or tanh in place of the clamp
    backward  d_t = clamp(m_t * (g_t + u * d_{t+1}), -c, c)
              m_t = 1 where lo < h_t < hi, else 0; for tanh 1 - h_t^2
              grad_a = d, grad_h0 = u * d_1, and over batch and time the sums
              grad_u of d_t * h_{t-1}, grad_b of d_t

Shapes: a, h, grad_h (B, T, N), or (total, N) with cu_seqlens; any strides of batch and time,
channels contiguous. h may be a's own memory. Saves nothing: m_t is read off the stored h.
Floor: 2 reads or writes of an element forward (torch.relu has as many) and 3 backward, with 2 to 6
operations.

A work item is a run of channels of one sequence. The loop over channels is the inner one and is
vectorised; the state and u of a run stay in the first-level cache, and all other memory is touched
once, in order. The new state is
written to its own small buffer and then copied to h: the compiler can prove that the buffer
overlaps nothing, so that it needs no check, and h may lie on a (0.45 ms at (32, 1000, 128) against
1.15 ms with the state read from h).

Threads: those of torch, see `team`.
"""

import functools
import math

import llvmlite.ir as ir
import numpy as np
import torch
from numba import carray, cfunc, from_dtype, njit, types
from numba.extending import intrinsic

from . import team

BOUNDS = {
    "relu": (0.0, np.inf),
    "identity": (-np.inf, np.inf),
    "hardtanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "tanh": (-1.0, 1.0),
}
# The loop adds the bias for free; in the matrix product it would be one more pass over memory.
ADDS_BIAS = True
# Runs of channels: at most what fits the first-level cache with u and two buffers, at least a few
# cache lines.
_WIDEST, _NARROWEST = 1024, 64
# Elements by which memory is asked for ahead of use: the processor's own prefetcher follows rows
# upwards in time only, and without this a walk down takes twice as long at 512 channels.
_AHEAD = 2048

# What a loop is told, in C's layout: addresses, sizes, strides in elements, flags.
_INTEGERS = [
    *("items", "blocks", "width", "T", "N", "reverse", "tanh"),
    *("a", "a_b", "a_t", "h", "h_b", "h_t", "g", "g_b", "g_t", "u", "bias", "h0", "h_n"),
    *("lengths", "cu_seqlens", "resets", "resets_b", "resets_t", "grad_u", "grad_b"),
]
_ARGUMENTS = np.dtype(
    [(name, np.int64) for name in _INTEGERS] + [(name, np.float64) for name in ("lo", "hi", "clip")]
)


_thread_num, _num_threads = team.thread_num, team.num_threads


@intrinsic
def _pointer(typing_context, address, index, like):
    def generate(context, builder, signature, arguments):
        array = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(array, [arguments[1]])

    return types.CPointer(like)(types.intp, types.intp, like), generate


@njit(inline="always")
def _row(address, index, count, like):
    """`count` elements of the type of `like`, from element `index` of the array at `address`."""
    return carray(_pointer(address, index, like), count)


@intrinsic
def _prefetch_line(typing_context, address, index, like):
    def generate(context, builder, signature, arguments):
        array = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(like)))
        line = builder.bitcast(builder.gep(array, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (line.type,), kind)
        # For reading, to be kept in all cache levels, as data.
        builder.call(function, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, like), generate


@njit(inline="always")
def _prefetch(address, index, count, like):
    for j in range(0, count, 16):  # a cache line of float32
        _prefetch_line(address, index + j, like)


@njit(inline="always")
def _clamp(z, lo, hi):
    """As torch.clamp: NaN stays NaN."""
    z = lo if z < lo else z
    return hi if z > hi else z


@njit(inline="always")
def _flush(z, tiny):
    """0 for a number below the normal ones. A state that fades for long would stay there for good,
    and arithmetic with such numbers is tens of times slower, here and in what reads the result."""
    return type(z)(0) if abs(z) < tiny else z


@njit(inline="always")
def _share(items):
    """The range of work items of the thread that calls."""
    members, member = _num_threads(), _thread_num()
    return items * member // members, items * (member + 1) // members


@njit(inline="always")
def _extent(x, b):
    """First row of sequence b, its length, and how many rows of the output are its own.

    Compiled code does not look at the values: one out of range must not leave the tensor.
    """
    if x.cu_seqlens:
        bounds = _row(x.cu_seqlens, b, 2, np.int64(0))
        begin = min(max(bounds[0], 0), x.T)
        length = min(max(bounds[1], begin), x.T) - begin
        return begin, length, length
    if x.lengths:
        return np.int64(0), min(max(_row(x.lengths, b, 1, np.int64(0))[0], 0), x.T), x.T
    return np.int64(0), x.T, x.T


@njit(inline="always")
def _time(x, begin, length, i):
    """The row of step i of the walk, which goes down in time if reversed."""
    return begin + (length - 1 - i if x.reverse else i)


@njit(inline="always")
def _is_reset(x, b, t):
    return x.resets != 0 and _row(x.resets, b * x.resets_b + t * x.resets_t, 1, np.uint8(0))[0] != 0


def _forward(real):
    zero, tiny = real(0), real(np.finfo(real).tiny)

    def forward(pointer):
        x = carray(pointer, 1)[0]
        lo, hi, N, a, h = real(x.lo), real(x.hi), x.N, x.a, x.h
        state = np.empty(x.width, real)
        first, last = _share(x.items)
        for item in range(first, last):
            b, n0 = item // x.blocks, item % x.blocks * x.width
            n = min(x.width, N - n0)
            lead = _AHEAD // n + 1
            begin, length, rows = _extent(x, b)
            u = _row(x.u, n0, n, zero)
            bias = _row(x.bias, n0, n, zero)
            if x.h0:
                start = _row(x.h0, b * N + n0, n, zero)
                for j in range(n):
                    state[j] = start[j]
            else:
                state[:n] = zero
            for i in range(length):
                t = _time(x, begin, length, i)
                ahead = _time(x, begin, length, min(i + lead, length - 1))
                _prefetch(a, b * x.a_b + ahead * x.a_t + n0, n, zero)
                _prefetch(h, b * x.h_b + ahead * x.h_t + n0, n, zero)
                if _is_reset(x, b, t):
                    state[:n] = zero
                a_row = _row(a, b * x.a_b + t * x.a_t + n0, n, zero)
                if x.tanh:
                    for j in range(n):
                        state[j] = _flush(np.tanh(a_row[j] + bias[j] + u[j] * state[j]), tiny)
                else:
                    for j in range(n):
                        state[j] = _flush(
                            _clamp(a_row[j] + bias[j] + u[j] * state[j], lo, hi), tiny
                        )
                h_row = _row(h, b * x.h_b + t * x.h_t + n0, n, zero)
                for j in range(n):
                    h_row[j] = state[j]
            for t in range(length, rows):
                h_row = _row(h, b * x.h_b + t * x.h_t + n0, n, zero)
                for j in range(n):
                    h_row[j] = zero
            end = _row(x.h_n, b * N + n0, n, zero)
            for j in range(n):
                end[j] = state[j]

    return forward


def _backward(real):
    """a is grad_a; grad_u, grad_b (B, N) have a sum for each sequence, to be added in fixed order.

    `message` is u * d_{t+1}, what reaches h_t from later steps: at first the gradient of h_n, at
    last that of h_0; h_n holds both.
    """
    zero, one, tiny = real(0), real(1), real(np.finfo(real).tiny)

    def backward(pointer):
        x = carray(pointer, 1)[0]
        lo, hi, clip = real(x.lo), real(x.hi), real(x.clip)
        N, a, h, g = x.N, x.a, x.h, x.g
        d, message = np.empty(x.width, real), np.empty(x.width, real)
        sum_u, sum_b = np.empty(x.width, real), np.empty(x.width, real)
        zeros = np.zeros(x.width, real)
        first, last = _share(x.items)
        for item in range(first, last):
            b, n0 = item // x.blocks, item % x.blocks * x.width
            n = min(x.width, N - n0)
            lead = _AHEAD // n + 1
            begin, length, rows = _extent(x, b)
            u = _row(x.u, n0, n, zero)
            message_0 = _row(x.h_n, b * N + n0, n, zero)
            for j in range(n):
                message[j], sum_u[j], sum_b[j] = message_0[j], zero, zero
            for i in range(length - 1, -1, -1):
                t, before = _time(x, begin, length, i), _time(x, begin, length, i - 1)
                ahead = _time(x, begin, length, max(i - lead, 0))
                _prefetch(g, b * x.g_b + ahead * x.g_t + n0, n, zero)
                _prefetch(h, b * x.h_b + ahead * x.h_t + n0, n, zero)
                _prefetch(a, b * x.a_b + ahead * x.a_t + n0, n, zero)
                g_row = _row(g, b * x.g_b + t * x.g_t + n0, n, zero)
                h_row = _row(h, b * x.h_b + t * x.h_t + n0, n, zero)
                reset = _is_reset(x, b, t)
                if reset or (i == 0 and not x.h0):
                    previous = zeros
                elif i == 0:
                    previous = _row(x.h0, b * N + n0, n, zero)
                else:
                    previous = _row(h, b * x.h_b + before * x.h_t + n0, n, zero)
                if x.tanh:
                    for j in range(n):
                        d[j] = (one - h_row[j] * h_row[j]) * (g_row[j] + message[j])
                else:
                    for j in range(n):
                        outside = (h_row[j] <= lo) | (h_row[j] >= hi)
                        d[j] = zero if outside else g_row[j] + message[j]
                for j in range(n):
                    d[j] = _flush(_clamp(d[j], -clip, clip), tiny)
                    sum_u[j] += d[j] * previous[j]
                    sum_b[j] += d[j]
                    message[j] = u[j] * d[j]
                if reset:
                    message[:n] = zero
                a_row = _row(a, b * x.a_b + t * x.a_t + n0, n, zero)
                for j in range(n):
                    a_row[j] = d[j]
            for t in range(length, rows):
                a_row = _row(a, b * x.a_b + t * x.a_t + n0, n, zero)
                for j in range(n):
                    a_row[j] = zero
            grad_u = _row(x.grad_u, b * N + n0, n, zero)
            grad_b = _row(x.grad_b, b * N + n0, n, zero)
            for j in range(n):
                message_0[j], grad_u[j], grad_b[j] = message[j], sum_u[j], sum_b[j]

    return backward


def scan_forward(
    a,  # [B, T, N] or [total, N]
    u,  # [N]
    h0,  # [B, N] or None
    h,  # like a, is written; may be a
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    bias=None,  # [N], is added to a
):
    """Writes h, returns h_n [B, N] of a's dtype. Half precision is computed in float32."""
    dtype = _state_dtype(a)
    work = a.to(dtype)
    out = h if h.dtype == dtype else work
    B, N = _batch(h, cu_seqlens), h.shape[-1]
    h_n = a.new_empty(B, N, dtype=dtype)
    rows = {"a": work, "h": out}
    bias = h_n.new_zeros(N) if bias is None else bias.to(dtype)
    states = {"u": u.to(dtype), "bias": bias, "h_n": h_n}
    if h0 is not None:
        states["h0"] = h0.to(dtype)
    sequences = {"lengths": lengths, "cu_seqlens": cu_seqlens, "resets": resets}
    _run(_forward, rows, states, sequences, nonlinearity, reverse)
    if out is not h:
        h.copy_(out)
    return h_n.to(a.dtype)


def scan_backward(
    grad_h,  # [B, T, N] or [total, N]
    grad_h_n,  # [B, N] or None
    h,  # like grad_h
    u,  # [N]
    h0,  # [B, N] or None
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,  # [B] int64
    cu_seqlens=None,  # [B + 1] int64
    resets=None,  # [B, T] or [total] bool
    grad_clip=None,
):
    """Returns grad_a like h, grad_u [N] of u's dtype, grad_h0 [B, N] of h0's dtype, else h's, and
    grad_b [N] of h's dtype: the sum of grad_a over batch and time."""
    dtype = _state_dtype(h)
    B, N = _batch(h, cu_seqlens), h.shape[-1]
    grad_a = torch.empty_like(h, dtype=dtype)
    sum_u, sum_b = h.new_empty(2, B, N, dtype=dtype)
    # The gradient of h_n on the way in, that of h0 on the way out.
    message = torch.zeros_like(sum_u) if grad_h_n is None else grad_h_n.to(dtype, copy=True)
    rows = {"a": grad_a, "h": h.to(dtype), "g": grad_h.to(dtype)}
    states = {"u": u.to(dtype), "h_n": message, "grad_u": sum_u, "grad_b": sum_b}
    if h0 is not None:
        states["h0"] = h0.to(dtype)
    sequences = {"lengths": lengths, "cu_seqlens": cu_seqlens, "resets": resets}
    _run(_backward, rows, states, sequences, nonlinearity, reverse, grad_clip)
    return (
        grad_a.to(h.dtype),
        sum_u.sum(0).to(u.dtype),
        message.to(h.dtype if h0 is None else h0.dtype),
        sum_b.sum(0).to(h.dtype),
    )


def _state_dtype(h):
    return torch.float64 if h.dtype == torch.float64 else torch.float32


def _batch(h, cu_seqlens):
    return h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _run(make, rows, states, sequences, nonlinearity, reverse, grad_clip=None):
    """Fills in the arguments and runs the loop that `make` makes.

    rows: tensors with batch and time strides; states: contiguous tensors; sequences: tensors or
    None.
    """
    B, N = states["h_n"].shape
    if B == 0 or N == 0:
        return
    if all(x is None for x in sequences.values()) and all(x.stride(0) == N for x in rows.values()):
        # Time first, all of one length: one sequence of B * N channels, in longer rows of memory.
        rows = {k: x.transpose(0, 1).view(1, x.shape[1], B * N) for k, x in rows.items()}
        states = {
            k: x.repeat(B) if k in ("u", "bias") else x.view(1, -1) for k, x in states.items()
        }
        B, N = 1, B * N
    h = rows["h"]
    arguments = np.zeros(1, _ARGUMENTS)
    x = arguments[0]
    for name, tensor in (rows | states | sequences).items():
        if tensor is not None:
            x[name] = tensor.data_ptr()
    # Without a batch dimension (cu_seqlens) its stride is 0.
    for name, tensor in rows.items():
        x[f"{name}_b"], x[f"{name}_t"] = (0, *tensor.stride())[-3:-1]
    if sequences["resets"] is not None:
        x["resets_b"], x["resets_t"] = (0, *sequences["resets"].stride())[-2:]
    blocks = _blocks(B, N, torch.get_num_threads())
    x["items"], x["blocks"], x["width"] = B * blocks, blocks, -(-N // blocks)
    x["T"], x["N"], x["reverse"], x["tanh"] = h.shape[-2], N, reverse, nonlinearity == "tanh"
    x["lo"], x["hi"] = BOUNDS[nonlinearity]
    x["clip"] = np.inf if grad_clip is None else grad_clip
    team.run(_compiled(make, h.dtype), arguments, h.numel())


def _blocks(B, N, threads):
    """Runs of channels a sequence: few, as memory is best read in long rows, but so many that every
    thread gets about the same."""
    blocks = math.ceil(N / _WIDEST)
    while blocks * _NARROWEST < N:
        items = B * blocks
        if math.ceil(items / threads) * threads <= 1.1 * items:
            break
        blocks += 1
    return math.ceil(N / math.ceil(N / blocks))  # none of them empty


@functools.cache
def _compiled(make, dtype):
    """Compiled once and kept on disk, beside this file or else in numba's folder for the user."""
    real = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    signature = types.void(types.CPointer(from_dtype(_ARGUMENTS)))
    options = {"fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return cfunc(signature, cache=True, **options)(make(real))
    except RuntimeError:  # no folder that can be written
        return cfunc(signature, **options)(make(real))
