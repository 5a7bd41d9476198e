"""Which steps a program walks, and the rows of memory under them. Conventions as in `scan`."""

import triton
import triton.language as tl

from .registers import columns


@triton.jit
def extent(b, T, cu_seqlens_ptr):
    """The first row of sequence b, and its padded length."""
    first = b * 0
    padded = first + T
    # Compiled code does not look at the values: one out of range must not leave the tensor.
    if cu_seqlens_ptr is not None:
        first = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b), T), 0)
        padded = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b + 1), T), first) - first
    return first, padded


@triton.jit
def steps_of_chunk(padded, CHUNKS: tl.constexpr, ROWS: tl.constexpr):
    """The number of steps of each chunk of a sequence, but of its last ones."""
    return tl.cdiv(tl.cdiv(padded, CHUNKS), ROWS) * ROWS


@triton.jit
def program(
    T,
    N,
    lengths_ptr,
    cu_seqlens_ptr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """This program's sequence and chunk, the sequence's first row and length, and the program's
    steps, start to stop, the end of its share of the padded time, and its channels."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    # No lane has more neighbours of u than of a row: that would cost an exchange for each row.
    offs_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_n = tl.max_contiguous(offs_n, VECTOR)
    first, padded = extent(b, T, cu_seqlens_ptr)
    length = padded
    if lengths_ptr is not None:
        length = tl.maximum(tl.minimum(tl.load(lengths_ptr + b), padded), 0)
    chunk = tl.program_id(1)
    share = steps_of_chunk(padded, CHUNKS, ROWS)
    start = chunk * share
    end = tl.minimum(start + share, padded)
    stop = tl.maximum(start, tl.minimum(end, length))
    return b, chunk, first, length, start, stop, end, offs_n


@triton.jit
def multiple(x, VECTOR: tl.constexpr):
    """x, which is a multiple of VECTOR, in a form that says so to the compiler."""
    return x // VECTOR * VECTOR


@triton.jit
def walk_rows(
    ptr, b, first, length, stride_b, stride_t, REVERSE: tl.constexpr, VECTOR: tl.constexpr = 1
):
    """The row of step 0, and the 64-bit stride from each step's row to the next one's.

    Strides are multiples of VECTOR, by which loads and stores are as wide as may be.
    """
    stride = multiple(b * 0 + stride_t, VECTOR)
    ptr += b * multiple(stride_b, VECTOR) + first * stride
    if REVERSE:
        ptr += (length - 1) * stride
        stride = -stride
    return ptr, stride


@triton.jit
def within(offs_n, N, condition):
    """The mask of channels below N, if a condition on the whole program holds.

    N is None where it is a multiple of BLOCK_N: a constant condition then compiles to no mask.
    """
    if N is None:
        return offs_n * 0 == tl.where(condition, 0, 1)
    else:
        return offs_n < tl.where(condition, N, 0)


@triton.jit
def load_rows(walk, i, offs_n, N, left, ROWS: tl.constexpr):
    """The rows of steps i to i + ROWS, of which `left` exist: all in flight before one is used."""
    ptrs = walk[0] + i * walk[1] + offs_n
    rows = ()
    for r in tl.static_range(ROWS):
        row = tl.load(ptrs, mask=within(offs_n, N, r < left))
        rows = rows + (row,)  # noqa: RUF005
        ptrs += walk[1]
    return rows


@triton.jit
def load_group(walk, i, offs_n, N, ROWS: tl.constexpr, STAGES: tl.constexpr):
    """The rows of steps i to i + ROWS, all of which exist, in a loop of so many `num_stages`.

    With one stage the rows are loaded as by `load_rows`. With more they are one tile, whose load
    the compiler turns into a ring of asynchronous copies in shared memory, STAGES - 1 tiles deep.
    A lane reads all rows of its channels from there: taking the tile apart only renames registers.
    """
    if STAGES == 1:
        every = tl.full([], ROWS, tl.int64)  # a constant: its masks compile to nothing
        rows = load_rows(walk, i, offs_n, N, every, ROWS)
    else:
        BLOCK_N: tl.constexpr = offs_n.shape[0]
        LANE: tl.constexpr = BLOCK_N // 32
        offs_t = tl.arange(0, ROWS) * walk[1]
        ptrs = walk[0] + i * walk[1] + offs_t[:, None] + offs_n[None, :]
        if LANE * walk[0].dtype.element_ty.primitive_bitwidth == 64:
            # Copies of 16 bytes would give a lane every other row, at the cost of shuffles.
            ptrs = tl.max_contiguous(ptrs, [1, LANE])
        mask = None
        if N is not None:
            mask = (offs_n < N)[None, :]
        tile = tl.trans(tl.load(ptrs, mask=mask))
        parts = columns(tl.reshape(tile, [BLOCK_N, 1, ROWS]), ROWS.bit_length() - 1)
        rows = ()
        for r in tl.static_range(ROWS):
            rows = rows + (tl.reshape(parts[r], [BLOCK_N]),)  # noqa: RUF005
    return rows


@triton.jit
def load_resets(walk, i, left, ROWS: tl.constexpr):
    """The resets of steps i to i + ROWS, of which `left` exist, as bits of one number; ROWS <= 32.

    Without resets there are none. Loaded a group ahead: nothing else hides the time it takes.
    """
    bits = tl.full([], 0, tl.int32)
    if walk is not None:
        bit = tl.arange(0, 32)
        there = bit < tl.minimum(left, ROWS)
        flags = tl.load(walk[0] + (i + bit) * walk[1], mask=there, other=0)
        bits = tl.sum(flags.to(tl.int32) << bit, 0)
    return bits


@triton.jit
def zero_rows(ptr, b, length, start, end, offs_n, N, stride_b, stride_t):
    """Zeros in the rows of this program's share of T that lie past the sequence's length."""
    zeros = tl.zeros_like(offs_n).to(ptr.dtype.element_ty)
    mask = within(offs_n, N, True)
    for t in range(tl.maximum(start, length), end):
        tl.store(ptr + b * stride_b + t * stride_t + offs_n, zeros, mask=mask)
