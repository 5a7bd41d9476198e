"""How a call is divided among the programs of a GPU: a small model of time in place of a search, so
that no user waits for one.

Times are in clocks of one multiprocessor. The constants are published figures of the devices named,
or counts from the compiled kernels (`aot`); `python -m bench tune` compares what is picked here
with a sweep.
"""

import functools
import math
from typing import NamedTuple


class Device(NamedTuple):
    """What the model knows of a GPU."""

    family: str | None  # of matrix instructions, a key of FAMILIES; None: no fused kernel
    multiprocessors: int
    lanes: int  # of a warp
    cache: int  # bytes of the last-level cache


class Family(NamedTuple):
    """Matrix instructions, and what the devices that have them can do."""

    lanes: int  # that hold a row of the accumulator ...
    adjacent: int  # ... and the neighbouring columns that each of them holds in turn
    products: int  # multiply-adds of 16-bit numbers a clock and multiprocessor
    memory: int  # bytes a clock and multiprocessor
    forward: int  # instructions an element besides the product
    backward: int  # the same in the backward, with a clip
    resident: int  # bytes of a weight's row up to which several blocks of K stay in shared memory
    resident_backward: int  # the same in the backward


# fmt: off
FAMILIES = {
    # NVIDIA 8.x and 12.x; rates of an A100. In the backward, resident weights would make the kernel
    # with all options spill.
    "mma": Family(
        lanes=4, adjacent=2, products=1024, memory=11,
        forward=19, backward=44, resident=512, resident_backward=0,
    ),
    # NVIDIA 9.0; rates of an H200.
    "wgmma": Family(
        lanes=4, adjacent=2, products=2048, memory=18,
        forward=14, backward=38, resident=1024, resident_backward=1024,
    ),
    # NVIDIA 10.x, where one lane holds a whole row; rates of a B200.
    "tcgen05": Family(
        lanes=1, adjacent=1, products=4096, memory=25,
        forward=9, backward=21, resident=1024, resident_backward=768,
    ),
    # AMD CDNA 3; rates of an MI300X. CDNA 4 needs fewer instructions: 14 and 20.
    "mfma": Family(
        lanes=2, adjacent=4, products=1024, memory=7,
        forward=35, backward=68, resident=512, resident_backward=512,
    ),
}
# fmt: on
CACHE_RATE = 32  # bytes a clock and multiprocessor from the last-level cache
ASYNCHRONOUS = ("mma", "wgmma", "tcgen05")  # families that copy to shared memory in the background
GOAL = 32 * 1024  # bytes in flight that keep a multiprocessor's share of the memory busy
RING = 28 * 1024  # bytes of a program's ring
LAUNCH = 4000  # a kernel's start and end: 2 us
HOP = 1800  # from one tile of a chain to the next: 1 us
LATENCY = 600  # of a tile's recurrence, beyond its instructions
LIBRARY = 0.8  # of the peak rate, in a large product of cuBLAS
CACHE_SHARES = 2  # a slice of the split way may take the cache divided by this


class Plan(NamedTuple):
    """How the scan is divided."""

    chunks: int  # of time
    rows: int  # time steps of a group, whose rows are loaded together
    stages: int  # 1: a group lies in registers; more: a ring of stages - 1 groups in shared memory
    block_n: int  # channels of a program


def plan(device, B, T, N, itemsize, tensors_read, vector):
    """The `Plan` for B sequences of T steps and N channels, where a step reads a row of each of
    `tensors_read` tensors, and rows are known to begin at multiples of `vector` bytes.

    A multiprocessor keeps its share of the memory busy with about 32 KiB in flight (latency times
    bandwidth: 0.9 us of an H200's 4.8 TB/s, over 132). What is in flight is each program's ring, or
    its group of rows.
    - A ring is used where the device copies asynchronously, which takes words of 4 bytes, and where
      sequences are long enough to fill it. It has 28 KiB, so that an NVIDIA multiprocessor holds 3
      to 7 programs.
    - block_n is 16 bytes a lane, or `vector`. It is less until there are 1.5 programs for every
      multiprocessor (one program alone is slow where its lanes have much to do) and at most a
      fifth of the lanes have no channel.
    - rows are 256 bytes a lane, which the registers hold without a spill, but 32 at most, because
      what is unrolled further takes long to compile.
    - chunks are a power of two, doubled until two thirds of the goal are in flight: chunks read the
      input twice, which costs half as much again. Where there are several, and each is longer than
      a launch takes, they are doubled until every multiprocessor has 4 programs. A chunk has at
      least 4 groups, and there are at most sqrt(T) / 2 chunks, because `_scan_propagate_kernel`
      takes them one by one.
    """
    has_ring = device.family in ASYNCHRONOUS and vector >= 4
    lane = vector if has_ring else 16
    least = max(4, 2 * itemsize) if has_ring else itemsize
    block_n = lane * device.lanes // itemsize
    while lane > least and (
        2 * B * math.ceil(N / block_n) < 3 * device.multiprocessors
        or 4 * math.ceil(N / block_n) * block_n > 5 * N
    ):
        lane, block_n = lane // 2, block_n // 2
    rows = min(256 // lane, 32) // tensors_read
    group = tensors_read * rows * lane * device.lanes
    stages = 1 + RING // group if has_ring and 4 * rows <= T else 1
    in_flight = B * N * itemsize * tensors_read * rows * max(stages - 1, 1)
    programs = B * math.ceil(N / block_n)
    most_chunks = min(T // (4 * rows), math.isqrt(T) // 2)
    chunks = 1
    while 2 * chunks <= most_chunks and (
        3 * chunks * in_flight < 2 * GOAL * device.multiprocessors
        or (1 < chunks < T // 1024 and chunks * programs < 4 * device.multiprocessors)
    ):
        chunks *= 2
    return Plan(chunks, rows, stages, block_n)


class Tile(NamedTuple):
    """How a fused kernel is divided, and how the device lays out an accumulator."""

    block_n: int
    block_t: int
    block_k: int
    warps: int
    stages: int
    lanes: int  # as in `Family`
    adjacent: int
    ahead: bool = False  # weights of several blocks of K stay, and a tile's input is loaded ahead


def pick_tile(family, N, K, itemsize, backward, aligned, chained=False):
    """The tile of a fused kernel: the largest that keeps the recurrence in registers without a
    spill (three of the 356 kernels in bench/results/sass.json spill, 56 bytes at most).

    aligned: rows are multiples of 16 bytes. Where they are not, loads are one element wide and
    their pointers take registers, so tiles are smaller. Weights of one block of K stay in shared
    memory. Those of several blocks stay as far as they fit, with smaller tiles, because the next
    tile's input lies in registers meanwhile; but not in a chain, whose programs have one tile each.
    """
    block_k = 128 // itemsize if aligned else 32
    if family == "wgmma":
        wide, narrow = (128, 128, 8, 4), (64, 128, 4, 3)
        if backward:
            wide, narrow = (128, 64, 8, 3), (64, 64, 4, 3)
        block_n, block_t, warps, stages = wide if N > 64 else narrow
        if (itemsize == 4 and backward) or not aligned:
            block_n, block_t, warps, stages = 64, 64, 4, 3
    elif family == "tcgen05":
        block_n, block_t, warps, stages = 128, 64 if aligned and not backward else 32, 4, 3
    else:
        block_n, block_t, warps, stages = 128, 32 if aligned or not backward else 16, 4, 2
        if family == "mma":
            stages, block_k = 4, 32
    rates = FAMILIES[family]
    widest = rates.resident_backward if backward else rates.resident
    ahead = False
    if block_k * (2 if aligned and block_n * itemsize <= 256 else 1) >= K:
        block_k = max(16, 1 << (K - 1).bit_length())
    elif aligned and not chained and block_n == 128 and K * itemsize <= widest:
        ahead, stages = True, 1
        # A block is 128 bytes. The products of Hopper and Blackwell wait once for each block: there
        # it is 128 bytes times a power of two that divides K, as far as the registers allow.
        block_k = 128 // itemsize
        blocks = math.ceil(K / block_k)
        if family == "wgmma" and not backward:
            block_k *= blocks & -blocks
        elif family in ("wgmma", "tcgen05"):
            block_k *= min(blocks & -blocks, 2)
        block_t = min(block_t, 32 if family == "tcgen05" else 64)
    return Tile(block_n, block_t, block_k, warps, stages, rates.lanes, rates.adjacent, ahead)


def constants_of(tile, K, lanes):
    """The compile-time arguments of the fused kernels that follow from their tile, from K and from
    the lanes of a warp."""
    blocks_k = math.ceil(K / tile.block_k)
    return {
        "EVEN_K": K % tile.block_k == 0,
        "BLOCKS_K": blocks_k if tile.ahead or blocks_k == 1 else 0,
        "AHEAD": tile.ahead,
        "LANES": tile.lanes,
        "ADJACENT": tile.adjacent,
        "LEVELS": (tile.block_t // tile.lanes).bit_length() - 1,
        "BLOCK_T": tile.block_t,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.stages,
        "COPIES": max(1, tile.warps * lanes // tile.block_n),
    }


def compiler_options_of(tile):
    """How Triton compiles the fused kernels."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


class LayerSizes(NamedTuple):
    """The sizes of a call of the layer."""

    B: int  # sequences, for each direction
    T: int
    K: int
    N: int  # channels of one direction
    itemsize: int
    backward: bool


def fused_time(device, layer, tile, chained):
    """Clocks of the fused kernel: each program takes all tiles of a sequence, or one of a chain."""
    B, T, K, N, itemsize, backward = layer
    family = FAMILIES[device.family]
    blocks_k = math.ceil(K / tile.block_k)
    rate = family.products * 2 // itemsize
    product = tile.block_n * tile.block_t * blocks_k * tile.block_k / rate
    stay = (tile.ahead or blocks_k == 1) and not chained
    weights = tile.block_n * K * itemsize / CACHE_RATE
    traffic = tile.block_t * K * itemsize / CACHE_RATE + (0 if stay else weights)
    each_element = family.backward if backward else family.forward
    if tile.ahead:  # 16 bytes are loaded and stored at a time, and their addresses computed
        each_element += K * itemsize / (2 * tile.block_n)
    recurrence = each_element * tile.block_n * tile.block_t / (4 * device.lanes)
    alone = max(product, traffic) + recurrence + LATENCY
    busy = max(product, traffic, recurrence)
    programs, tiles, hops = B * math.ceil(N / tile.block_n), math.ceil(T / tile.block_t), 0
    if chained:
        programs, tiles, hops = programs * tiles, 1, tiles * HOP
    each = math.ceil(programs / device.multiprocessors)
    at_once = 8 // tile.warps  # as many as the registers hold
    # With 8 warps, 119 registers and 96 KiB of shared memory, at K = 256 in 16 bits: two fit.
    if device.family == "wgmma" and tile.ahead and not backward and K * itemsize <= 512:
        at_once = 2
    compute = tiles * max(each * busy, math.ceil(each / at_once) * alone)
    if stay:
        compute += each * weights
    elements_a_step = K + 2 * N if backward else K + N
    return LAUNCH + max(compute, hops, _memory_time(device, B * T * elements_a_step * itemsize))


def split_time(device, layer, slices):
    """Clocks of the library's product, then the scan in place: both on each slice of the batch in
    turn, so that the scan finds the product in the cache."""
    B, T, K, N, itemsize, backward = layer
    family = FAMILIES[device.family]
    rate = LIBRARY * family.products * 2 // itemsize
    product = max(
        B * T * K * N / (device.multiprocessors * rate),
        _memory_time(device, B * T * (K + N) * itemsize),
    )
    tensors_read = 2 if backward else 1
    vector = math.gcd(16, N * itemsize)
    chunks = plan(device, B, T, N, itemsize, tensors_read, vector).chunks
    size = B * T * N * itemsize
    passes = 1 + tensors_read + (tensors_read if chunks > 1 else 0)
    scan = _memory_time(device, passes * size)
    if size <= slices * device.cache // CACHE_SHARES:
        scan = passes * size / (device.multiprocessors * CACHE_RATE)
    return product + scan + slices * LAUNCH * (2 if chunks == 1 else 4)


def _memory_time(device, size):
    return size / (device.multiprocessors * FAMILIES[device.family].memory)


class Choice(NamedTuple):
    """How a layer is computed: fused with this tile, or, without one, split in slices."""

    tile: Tile | None
    chained: bool  # each tile is a program of its own
    slices: int  # parts of the batch, in turn


@functools.lru_cache(maxsize=4096)
def choose(device, strategy, B, T, K, N, itemsize, backward, aligned, can_chain, most_slices):
    """The `Choice` that is fastest by the model, of those that `strategy` and the flags allow.

    The first sizes are those of `LayerSizes`. most_slices: 1 where the batch cannot be sliced.
    """
    layer, ways = LayerSizes(B, T, K, N, itemsize, backward), []
    if strategy != "split":
        shortest = pick_tile(device.family, N, K, itemsize, backward, aligned).block_t
        for chained in (False, True) if can_chain and shortest < T else (False,):
            tile = pick_tile(device.family, N, K, itemsize, backward, aligned, chained)
            time = fused_time(device, layer, tile, chained)
            ways.append((time, Choice(tile, chained, 1)))
    if strategy != "fused":
        slices = math.ceil(B * T * N * itemsize * CACHE_SHARES / max(device.cache, 1))
        for n in {1, max(1, min(slices, most_slices))}:
            time = split_time(device, layer, n) if device.family else 0.0
            ways.append((time, Choice(None, False, n)))
    return min(ways, key=lambda way: way[0])[1]
