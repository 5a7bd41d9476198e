"""What the two fused kernels share besides the recurrence: which tile a program computes, the
product of a tile, and the state passed from tile to tile where each is a program of its own.

Chained tiles. Where sequences and blocks of channels are too few to fill the device, every tile of
BLOCK_T steps is a program. The tiles of one sequence and one block of channels form a chain: a tile
computes its product, waits for the state that the tile before it in the chain publishes, and
publishes its own. Programs take their numbers from a counter, the ticket, in the order in which
they start, and the tiles of all chains are numbered by time first. So a tile waits only for
programs that have started, whatever the order; and because it takes the state of exactly one
program, the result does not depend on that order.
"""

import triton
import triton.language as tl

from .indexing import sequence_extent


@triton.jit
def tile_coordinates(
    ticket_ptr, T, N, lengths_ptr, cu_seqlens_ptr,
    DIRECTIONS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What this program computes.

    b, direction: its sequence, and which of the DIRECTIONS. first_row, length, padded_length: of
    the sequence. offs_n: [BLOCK_N], its channels, of the N of that direction. chain: the tiles of
    one sequence and block of channels that it belongs to. tile: its tile in the chain, or 0 where a
    program takes all of them. programs_per_tile: the number of chains, because each has one program
    for a tile.
    """
    blocks = tl.cdiv(N, BLOCK_N)
    chain = tl.program_id(0)
    tile = chain * 0
    programs_per_tile = tl.num_programs(0)
    if ticket_ptr is not None:
        programs_per_tile = programs_per_tile // tl.cdiv(T, BLOCK_T)
        ticket = tl.atomic_add(ticket_ptr, 1, sem="relaxed")
        tile = ticket // programs_per_tile
        chain = ticket % programs_per_tile
    b = (chain // (DIRECTIONS * blocks)).to(tl.int64)
    block = chain % (DIRECTIONS * blocks)
    direction = block // blocks
    offs_n = block % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    first_row, padded_length, length = sequence_extent(b, T, lengths_ptr, cu_seqlens_ptr)
    padded_length, length = padded_length.to(tl.int32), length.to(tl.int32)
    return b, direction, first_row, length, padded_length, offs_n, programs_per_tile, chain, tile


@triton.jit
def time_of_step(
    step, length, direction, REVERSE: tl.constexpr, DIRECTIONS: tl.constexpr
):  # fmt: skip
    """The time of a step in its sequence: step, or length - 1 - step with REVERSE; in the second of
    two directions the other of these."""
    if DIRECTIONS == 2:
        step = tl.where(direction != REVERSE, length - 1 - step, step)
    elif REVERSE:
        step = length - 1 - step
    return step


@triton.jit
def _load_or_zero(ptrs, mask):
    """The numbers at ptrs, and 0 outside of the mask, which may be None."""
    return tl.load(ptrs) if mask is None else tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def _input_mask(offs_k, K, valid, EVEN_K: tl.constexpr):
    """The mask [BLOCK_K, BLOCK_T] of a block of the input: offs_k < K, and valid [BLOCK_T].

    EVEN_K: the first condition holds everywhere. valid is None: the second one does. Where both
    do, the mask is None.
    """
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
    """The weights [BLOCK_N, K] as a tuple of BLOCKS_K tensors [BLOCK_N, BLOCK_K].

    Triton keeps a tensor that is loaded before a loop and multiplied in it in shared memory. It has
    no index into shared memory, so the blocks are separate tensors and the loop over them is
    unrolled.
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
    x_ptr, times, valid, stride_xt, offs_k, K,
    EVEN_K: tl.constexpr, BLOCKS_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The input x [K] at the times `times` [BLOCK_T], as a tuple of BLOCKS_K tensors [BLOCK_K,
    BLOCK_T]. Zeros are in the columns where `valid` [BLOCK_T] is False; None: there are none."""
    x_ptrs = x_ptr + times[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
    xs = ()
    for k in tl.static_range(BLOCKS_K):
        mask = _input_mask(offs_k, K - k * BLOCK_K, valid, EVEN_K or k < BLOCKS_K - 1)
        xs = xs + (_load_or_zero(x_ptrs + k * BLOCK_K, mask),)  # noqa: RUF005
    return xs


@triton.jit
def input_in_registers(
    x_ptr, times, valid, stride_xt, K,
    EVEN_K: tl.constexpr, BLOCKS_K: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What `input_blocks` loads, in registers until `resident_product` takes it an iteration later.

    Each of the BLOCKS_K tensors is [BLOCK_K / PIECE, PIECE, BLOCK_T], where a PIECE is 128 bytes:
    then a lane loads 16 bytes of every piece, for the same few times, and computes addresses for
    these times alone. Numbers of 16 bits are in pairs, see `_pairs`.
    """
    PIECE: tl.constexpr = 1024 // x_ptr.dtype.element_ty.primitive_bitwidth
    PIECES: tl.constexpr = BLOCK_K // PIECE
    offs_k = tl.arange(0, PIECE)
    x_ptrs = x_ptr + times[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
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
        xs = xs + (_pairs(_load_or_zero(ptrs, mask)),)  # noqa: RUF005
    return xs


@triton.jit
def _pairs(x):
    """A tensor [PIECES, PIECE, BLOCK_T] of 16-bit numbers as [PIECES, PIECE / 2, BLOCK_T] of pairs
    in 32 bits each. Other dtypes stay as they are.

    From one iteration to the next the compiler keeps each 16-bit number in a register of its own,
    and takes two instructions to move a pair there and back.
    """
    if x.dtype.primitive_bitwidth == 16:
        x = x.to(tl.uint16, bitcast=True).to(tl.uint32)
        x = tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2, x.shape[2]])
        first, second = tl.split(tl.permute(x, [0, 1, 3, 2]))
        x = first | (second << 16)
    return x


@triton.jit
def _from_pairs(x, dtype: tl.constexpr):
    """The tensor that `_pairs` was given, reshaped to [BLOCK_K, BLOCK_T]."""
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
    """acc [BLOCK_N, BLOCK_T] plus the product of `resident_weights` and of the input, which with
    AHEAD is that of `input_in_registers`, else of `input_blocks`."""
    for k in tl.static_range(len(ws)):
        x = _from_pairs(xs[k], ws[k].dtype) if AHEAD else xs[k]
        acc = tl.dot(ws[k], x, acc, input_precision=PRECISION)
    return acc


@triton.jit
def streamed_product(
    x_ptr, times, valid, stride_xt, w_ptrs, stride_wk, mask_n, offs_k, K, acc,
    EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_N, BLOCK_T] plus the product of the weights [BLOCK_N, K] and of the input at the
    times `times`, zeros where not `valid`; both are loaded block by block, for every tile."""
    x_ptrs = x_ptr + times[None, :].to(tl.int64) * stride_xt + offs_k[:, None]
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        w_mask = mask_n[:, None]
        if not EVEN_K:
            w_mask &= (offs_k < K - k)[None, :]
        w_k = tl.load(w_ptrs + k * stride_wk, mask=w_mask, other=0.0)
        x_k = _load_or_zero(x_ptrs + k, _input_mask(offs_k, K - k, valid, EVEN_K))
        acc = tl.dot(w_k, x_k, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _pointers_to_states(states_ptr, channel):
    """states_ptr + channel, as pointers made from integers.

    AMD's compiler turns accesses through a pointer argument into buffer instructions. A load then
    loses `volatile` and could read a stale cache line for ever, and Triton 3.6 cannot compile an
    exchange of 64 bits.
    """
    return (states_ptr.to(tl.int64) + 8 * channel).to(tl.pointer_type(tl.int64))


@triton.jit
def publish_state(states_ptr, state):
    """Writes the state [BLOCK_N] to states_ptr [BLOCK_N], for the next tile of the chain.

    Each number and the flag that it is there, bit 32, are one 64-bit word, written at once.
    """
    bits = state.to(tl.uint32, bitcast=True).to(tl.int64)
    ptrs = _pointers_to_states(states_ptr, tl.arange(0, state.shape[0]))
    tl.atomic_xchg(ptrs, bits | (1 << 32), sem="relaxed")


@triton.jit
def await_state(states_ptr, BLOCK_N: tl.constexpr, COPIES: tl.constexpr):
    """The state [BLOCK_N] that another program publishes at states_ptr, as soon as it is there.

    Every number is loaded COPIES times, so that there are at least as many loads as the program has
    threads. With fewer, several threads would poll for the same element; the compiler takes what
    they load for equal and uses either, but one may be older than the other.
    """
    channel = tl.arange(0, COPIES * BLOCK_N) % BLOCK_N
    ptrs = _pointers_to_states(states_ptr, channel)
    word = tl.load(ptrs, volatile=True)
    while tl.min(word >> 32, 0) == 0:
        word = tl.load(ptrs, volatile=True)
    word = tl.max(tl.reshape(word, [COPIES, BLOCK_N]), 0)
    return word.to(tl.int32).to(tl.float32, bitcast=True)
