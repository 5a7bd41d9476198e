"""The time steps and channels of a program, and the rows of memory in which they lie.

A *row* is the N neighbouring numbers of one sequence and one time step. Steps are counted in the
order in which the kernel takes them, as in `scan`: step i is time i, or length-1-i where REVERSE.
"""

import triton
import triton.language as tl

from .registers import split_columns


@triton.jit
def sequence_extent(b, T, lengths_ptr, cu_seqlens_ptr):
    """The first row of sequence b, its padded length, and its length."""
    # Compiled code does not look at the values: one out of range must not leave the tensor.
    first_row = b * 0
    padded_length = first_row + T
    if cu_seqlens_ptr is not None:
        first_row = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b), T), 0)
        next_row = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b + 1), T), first_row)
        padded_length = next_row - first_row
    length = padded_length
    if lengths_ptr is not None:
        length = tl.maximum(tl.minimum(tl.load(lengths_ptr + b), padded_length), 0)
    return first_row, padded_length, length


@triton.jit
def steps_per_chunk(padded_length, CHUNKS: tl.constexpr, ROWS: tl.constexpr):
    """The number of steps of a chunk: whole groups of ROWS. The last chunks may have fewer."""
    return tl.cdiv(tl.cdiv(padded_length, CHUNKS), ROWS) * ROWS


@triton.jit
def program_coordinates(
    T,
    N,
    lengths_ptr,
    cu_seqlens_ptr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """What this program computes.

    b, chunk: its sequence and its chunk of time. first_row, length: of the sequence. start, stop:
    the steps of the chunk that the sequence has, start <= i < stop. end: where the chunk ends in
    the padded length. offs_n: [BLOCK_N], its channels.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    # A lane gets no more neighbouring channels of u than it loads of a row: with more, every row
    # would be exchanged between lanes.
    offs_n = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_n = tl.max_contiguous(offs_n, VECTOR)
    first_row, padded_length, length = sequence_extent(b, T, lengths_ptr, cu_seqlens_ptr)
    chunk = tl.program_id(1)
    steps = steps_per_chunk(padded_length, CHUNKS, ROWS)
    start = chunk * steps
    end = tl.minimum(start + steps, padded_length)
    stop = tl.maximum(start, tl.minimum(end, length))
    return b, chunk, first_row, length, start, stop, end, offs_n


@triton.jit
def as_multiple(x, VECTOR: tl.constexpr):
    """x, which is a multiple of VECTOR, in a form that tells the compiler so."""
    return x // VECTOR * VECTOR


@triton.jit
def row_pointers(
    ptr, b, first_row, length, stride_b, stride_t, REVERSE: tl.constexpr, VECTOR: tl.constexpr = 1
):  # fmt: skip
    """(pointer to the row of step 0, 64-bit stride from the row of a step to that of the next); or
    None, where ptr is None.

    With REVERSE step 0 is the sequence's last time, and the stride is negative. The strides given
    are multiples of VECTOR, which lets the compiler load and store as many numbers at once.
    """
    pointers = None
    if ptr is not None:
        stride = as_multiple(b * 0 + stride_t, VECTOR)
        ptr += b * as_multiple(stride_b, VECTOR) + first_row * stride
        if REVERSE:
            ptr += (length - 1) * stride
            stride = -stride
        pointers = ptr, stride
    return pointers


@triton.jit
def channel_mask(offs_n, N, condition):
    """[BLOCK_N]: offs_n < N, and False everywhere unless the program's scalar condition holds.

    N is None where it is a multiple of BLOCK_N: a constant condition then compiles to no mask.
    """
    if N is None:
        return offs_n * 0 == tl.where(condition, 0, 1)
    else:
        return offs_n < tl.where(condition, N, 0)


@triton.jit
def load_rows(pointers, i, offs_n, N, left, ROWS: tl.constexpr):
    """The rows of steps i to i + ROWS as a tuple of ROWS tensors [BLOCK_N].

    Only `left` of these steps exist. All loads are issued before a row is used.
    """
    ptrs = pointers[0] + i * pointers[1] + offs_n
    rows = ()
    for r in tl.static_range(ROWS):
        row = tl.load(ptrs, mask=channel_mask(offs_n, N, r < left))
        rows = rows + (row,)  # noqa: RUF005
        ptrs += pointers[1]
    return rows


@triton.jit
def load_group(pointers, i, offs_n, N, ROWS: tl.constexpr, STAGES: tl.constexpr):
    """`load_rows` of ROWS steps that all exist, inside of a loop with num_stages=STAGES.

    With more than one stage the group is loaded as one tile [ROWS, BLOCK_N], which the compiler
    turns into asynchronous copies to a ring of STAGES - 1 tiles in shared memory. A lane reads all
    ROWS numbers of its channels from there, so taking the tile apart only renames registers.
    """
    if STAGES == 1:
        every = tl.full([], ROWS, tl.int64)  # a constant: its masks compile to nothing
        rows = load_rows(pointers, i, offs_n, N, every, ROWS)
    else:
        BLOCK_N: tl.constexpr = offs_n.shape[0]
        LANE: tl.constexpr = BLOCK_N // 32  # channels of a lane
        offs_t = tl.arange(0, ROWS) * pointers[1]
        ptrs = pointers[0] + i * pointers[1] + offs_t[:, None] + offs_n[None, :]
        if LANE * pointers[0].dtype.element_ty.primitive_bitwidth == 64:
            # Copies of 16 bytes would give a lane every other row, at the cost of shuffles.
            ptrs = tl.max_contiguous(ptrs, [1, LANE])
        mask = None
        if N is not None:
            mask = (offs_n < N)[None, :]
        tile = tl.trans(tl.load(ptrs, mask=mask))
        columns = split_columns(tl.reshape(tile, [BLOCK_N, 1, ROWS]), ROWS.bit_length() - 1)
        rows = ()
        for r in tl.static_range(ROWS):
            rows = rows + (tl.reshape(columns[r], [BLOCK_N]),)  # noqa: RUF005
    return rows


@triton.jit
def load_resets(pointers, i, left, ROWS: tl.constexpr):
    """The resets of steps i to i + ROWS as bits of one number, step i in the lowest. ROWS <= 32.

    Only `left` of these steps exist. Without resets, where pointers is None, all bits are 0.
    """
    bits = tl.full([], 0, tl.int32)
    if pointers is not None:
        bit = tl.arange(0, 32)
        exists = bit < tl.minimum(left, ROWS)
        flags = tl.load(pointers[0] + (i + bit) * pointers[1], mask=exists, other=0)
        bits = tl.sum(flags.to(tl.int32) << bit, 0)
    return bits


@triton.jit
def zero_padding(ptr, b, length, start, end, offs_n, N, stride_b, stride_t):
    """Writes zeros to the rows of times start to end that lie past the sequence's length."""
    zeros = tl.zeros_like(offs_n).to(ptr.dtype.element_ty)
    mask = channel_mask(offs_n, N, True)
    for t in range(tl.maximum(start, length), end):
        tl.store(ptr + b * stride_b + t * stride_t + offs_n, zeros, mask=mask)
