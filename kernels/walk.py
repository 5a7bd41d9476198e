"""Which steps a program walks, and the rows of memory under them. Conventions as in `scan`."""

import triton
import triton.language as tl


@triton.jit
def program(
    T,
    N,
    lengths_ptr,
    cu_seqlens_ptr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """This program's sequence and chunk, the sequence's first row and length, and the program's
    steps, start to stop, the end of its share of the padded time, and its channels."""
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    offs_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    first = b * 0
    padded = first + T
    # Compiled code does not look at the values: one out of range must not leave the tensor.
    if cu_seqlens_ptr is not None:
        first = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b), T), 0)
        padded = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b + 1), T), first) - first
    length = padded
    if lengths_ptr is not None:
        length = tl.maximum(tl.minimum(tl.load(lengths_ptr + b), padded), 0)
    chunk = tl.program_id(1)
    share = tl.cdiv(tl.cdiv(padded, CHUNKS), ROWS) * ROWS
    start = chunk * share
    end = tl.minimum(start + share, padded)
    stop = tl.maximum(start, tl.minimum(end, length))
    return b, chunk, first, length, start, stop, end, offs_n


@triton.jit
def walk_rows(ptr, b, first, length, stride_b, stride_t, REVERSE: tl.constexpr):
    """The row of step 0, and the 64-bit stride from each step's row to the next one's."""
    ptr += b * stride_b + first * stride_t
    stride = b * 0 + stride_t
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
def zero_rows(ptr, b, length, start, end, offs_n, N, stride_b, stride_t):
    """Zeros in the rows of this program's share of T that lie past the sequence's length."""
    zeros = tl.zeros_like(offs_n).to(ptr.dtype.element_ty)
    mask = within(offs_n, N, True)
    for t in range(tl.maximum(start, length), end):
        tl.store(ptr + b * stride_b + t * stride_t + offs_n, zeros, mask=mask)
