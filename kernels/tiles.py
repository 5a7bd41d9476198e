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
def product(
    x_ptrs, valid, w, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
    EVEN_K: tl.constexpr, ONE_K: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [N, BLOCK_T] plus the product of the weights and a tile of input rows."""
    if ONE_K:
        x = _load(x_ptrs, _below(offs_k, K, valid, EVEN_K))
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
    else:
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
