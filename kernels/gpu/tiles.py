"""What the fused kernels share beside the scan: places, products of tiles, chains of tiles."""

import triton
import triton.language as tl


@triton.jit
def place_of(
    ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr,
    HALVES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """This program's sequence, first row, length and padded length; its first channel, its
    half and channels of it; the number of programs abreast and the tile of this one."""
    blocks = tl.cdiv(N, BLOCK_N)
    place = tl.program_id(0)
    tile = place * 0
    abreast = tl.num_programs(0)
    if ticket_ptr is not None:
        abreast = abreast // tl.cdiv(T, BLOCK_T)
        place = tl.atomic_add(ticket_ptr, 1, sem="relaxed")
        tile = place // abreast
        place = place % abreast
    b = (place // (HALVES * blocks)).to(tl.int64)
    block = place % (HALVES * blocks)
    half = block // blocks
    offs_n = block % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    first = b * 0
    padded = tl.cast(T, tl.int32)
    # Compiled code does not look at the values: one out of range must not leave the tensor.
    if cu_seqlens_ptr is not None:
        first = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b), T), 0)
        next_first = tl.maximum(tl.minimum(tl.load(cu_seqlens_ptr + b + 1), T), first)
        padded = (next_first - first).to(tl.int32)
    length = padded
    if lengths_ptr is not None:
        length = tl.maximum(tl.minimum(tl.load(lengths_ptr + b), padded), 0).to(tl.int32)
    return b, first, length, padded, half, offs_n, abreast, place, tile


@triton.jit
def time_of(step, length, half, REVERSE: tl.constexpr, HALVES: tl.constexpr):
    """Where a step of the walk over a sequence lies in it."""
    if HALVES == 2:
        step = tl.where(half != REVERSE, length - 1 - step, step)
    elif REVERSE:
        step = length - 1 - step
    return step


@triton.jit
def _load(ptrs, mask):
    """What lies there, 0 outside of the mask, if there is one."""
    return tl.load(ptrs) if mask is None else tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def _below(offs_k, K, valid, EVEN_K: tl.constexpr):
    """The mask of a tile of input rows [BLOCK_K, BLOCK_T], None where nothing is ragged."""
    mask = None
    if not EVEN_K:
        mask = (offs_k < K)[:, None]
    if valid is not None:
        mask = valid[None, :] if EVEN_K else mask & valid[None, :]
    return mask


@triton.jit
def resident_weights(
    w_ptrs, stride_wk, mask_n, offs_k, K,
    EVEN_K: tl.constexpr, BLOCKS_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weights as BLOCKS_K tensors [BLOCK_N, BLOCK_K].

    A tensor that is loaded before a loop and multiplied in it stays in shared memory. A tuple of
    such tensors takes the place of an index into shared memory, which Triton does not have.
    """
    ws = ()
    for k in tl.static_range(BLOCKS_K):
        mask = mask_n[:, None]
        if not EVEN_K and k == BLOCKS_K - 1:
            mask &= (offs_k < K - k * BLOCK_K)[None, :]
        w = tl.load(w_ptrs + k * BLOCK_K * stride_wk, mask=mask, other=0.0)
        ws = ws + (w,)  # noqa: RUF005
    return ws


@triton.jit
def input_blocks(
    x_ptr, rows, valid, stride_xt, offs_k, K,
    EVEN_K: tl.constexpr, BLOCKS_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of input rows as BLOCKS_K tensors [BLOCK_K, BLOCK_T]; zeros where not `valid`."""
    x_ptrs = x_ptr + rows[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
    xs = ()
    for k in tl.static_range(BLOCKS_K):
        mask = _below(offs_k, K - k * BLOCK_K, valid, EVEN_K or k < BLOCKS_K - 1)
        xs = xs + (_load(x_ptrs + k * BLOCK_K, mask),)  # noqa: RUF005
    return xs


@triton.jit
def input_in_registers(
    x_ptr, rows, valid, stride_xt, K,
    EVEN_K: tl.constexpr, BLOCKS_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of input rows, in registers until `resident_product` takes it an iteration later.

    Each of the BLOCKS_K tensors is [BLOCK_K / PIECE, PIECE, BLOCK_T], PIECE being 128 bytes: a lane
    loads 16 bytes of each piece of few rows, and has to compute only the addresses of these rows.
    """
    PIECE: tl.constexpr = 1024 // x_ptr.dtype.element_ty.primitive_bitwidth
    PIECES: tl.constexpr = BLOCK_K // PIECE
    offs_k = tl.arange(0, PIECE)
    x_ptrs = x_ptr + rows[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
    pieces = tl.arange(0, PIECES)[:, None] * PIECE
    xs = ()
    for k in tl.static_range(BLOCKS_K):
        ptrs = x_ptrs[None, :, :] + (k * BLOCK_K + pieces)[:, :, None]
        mask = None
        if valid is not None:
            mask = valid[None, None, :]
        if not EVEN_K and k == BLOCKS_K - 1:
            inside = (k * BLOCK_K + pieces + offs_k[None, :] < K)[:, :, None]
            mask = inside if mask is None else mask & inside
        xs = xs + (_pairs(_load(ptrs, mask)),)  # noqa: RUF005
    return xs


@triton.jit
def _pairs(x):
    """Numbers of 16 bits as pairs in words of 32 bits [PIECES, PIECE / 2, BLOCK_T].

    The compiler carries each number of 16 bits from one iteration to the next in a register of its
    own, and takes two instructions to move a pair there and back.
    """
    if x.dtype.primitive_bitwidth == 16:
        x = x.to(tl.uint16, bitcast=True).to(tl.uint32)
        x = tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2, x.shape[2]])
        first, second = tl.split(tl.permute(x, [0, 1, 3, 2]))
        x = first | (second << 16)
    return x


@triton.jit
def _from_pairs(x, dtype: tl.constexpr):
    """What `_pairs` made of a tensor, as [BLOCK_K, BLOCK_T]."""
    if dtype.primitive_bitwidth == 16:
        first = x.to(tl.uint16).to(dtype, bitcast=True)
        second = (x >> 16).to(tl.uint16).to(dtype, bitcast=True)
        x = tl.permute(tl.join(first, second), [0, 1, 3, 2])
        x = tl.reshape(x, [x.shape[0] * x.shape[1] * 2, x.shape[3]])
    else:
        x = tl.reshape(x, [x.shape[0] * x.shape[1], x.shape[2]])
    return x


@triton.jit
def resident_product(ws, xs, acc, AHEAD: tl.constexpr, PRECISION: tl.constexpr):
    """acc [BLOCK_N, BLOCK_T] plus the product of all blocks of the weights and of the input."""
    for k in tl.static_range(len(ws)):
        x = _from_pairs(xs[k], ws[k].dtype) if AHEAD else xs[k]
        acc = tl.dot(ws[k], x, acc, input_precision=PRECISION)
    return acc


@triton.jit
def streamed_product(
    x_ptr, rows, valid, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
    EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_N, BLOCK_T] plus the product of weights and input, both read block by block."""
    x_ptrs = x_ptr + rows[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        w_mask = mask_n[:, None]
        if not EVEN_K:
            w_mask &= (offs_k < K - k)[None, :]
        w_k = tl.load(w_ptrs + k * stride_wk, mask=w_mask, other=0.0)
        x_k = _load(x_ptrs + k, _below(offs_k, K - k, valid, EVEN_K))
        acc = tl.dot(w_k, x_k, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _words(words_ptr, channel):
    """Pointers made from numbers. AMD's compiler turns accesses to an argument's memory into buffer
    instructions: a load loses `volatile`, and could read a stale cache line for ever, and Triton
    3.6 cannot compile an exchange of 64 bits."""
    return (words_ptr.to(tl.int64) + 8 * channel).to(tl.pointer_type(tl.int64))


@triton.jit
def publish(words_ptr, state):
    """The states [BLOCK_N], each in one word with the flag that it is there."""
    bits = state.to(tl.uint32, bitcast=True).to(tl.int64)
    ptrs = _words(words_ptr, tl.arange(0, state.shape[0]))
    tl.atomic_xchg(ptrs, bits | (1 << 32), sem="relaxed")


@triton.jit
def await_state(words_ptr, BLOCK_N: tl.constexpr, COPIES: tl.constexpr):
    """The states [BLOCK_N] that another program publishes at words_ptr and after.

    COPIES * BLOCK_N are at least as many as the program has threads, so that no two threads poll
    for one element: the compiler takes the values of such threads for equal and uses either, but
    one may be older than the other.
    """
    channel = tl.arange(0, COPIES * BLOCK_N) % BLOCK_N
    ptrs = _words(words_ptr, channel)
    word = tl.load(ptrs, volatile=True)
    while tl.min(word >> 32, 0) == 0:
        word = tl.load(ptrs, volatile=True)
    word = tl.max(tl.reshape(word, [COPIES, BLOCK_N]), 0)
    return word.to(tl.int32).to(tl.float32, bitcast=True)
