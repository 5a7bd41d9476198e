"""How a call is cut for a GPU: a small model of time, so that no user waits for a search.

Times are clocks of one multiprocessor. The constants are published figures of the devices named, or
counts from the compiled kernels (`aot`); `python -m bench tune` compares the picks with a sweep.
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
    lanes: int  # that share a row of the accumulator ...
    run: int  # ... and the neighbouring columns that each holds in turn
    products: int  # multiply-adds of 16-bit numbers a clock and multiprocessor
    memory: int  # bytes a clock and multiprocessor
    forward: int  # instructions an element beside the product
    backward: int  # with a clip
    resident: int  # bytes of K up to which weights of several blocks stay in shared memory ...
    resident_backward: int  # ... and in the backward; 0: that would spill with all options


FAMILIES = {
    "mma": Family(4, 2, 1024, 11, 19, 44, 512, 0),  # NVIDIA 8.x and 12.x; rates of an A100
    "wgmma": Family(4, 2, 2048, 18, 14, 38, 1024, 1024),  # NVIDIA 9.0; an H200
    # NVIDIA 10.x, whose lanes own whole rows; a B200
    "tcgen05": Family(1, 1, 4096, 25, 9, 21, 1024, 768),
    # AMD CDNA 3; an MI300X. CDNA 4 needs fewer instructions: 14, 36
    "mfma": Family(2, 4, 1024, 7, 35, 68, 512, 512),
}
CACHE_RATE = 32  # bytes a clock and multiprocessor from the last-level cache
ASYNCHRONOUS = ("mma", "wgmma", "tcgen05")  # families that copy to shared memory in the background
GOAL = 32 * 1024  # bytes in flight that keep a multiprocessor's share of the memory busy
RING = 28 * 1024  # bytes of a program's ring
LAUNCH = 4000  # a kernel's start and its tail: 2 us
HOP = 1800  # from one tile of a chain to the next: 1 us
LATENCY = 600  # of a tile's recurrence, beyond its instructions
LIBRARY = 0.8  # of the peak rate, in a large product of cuBLAS
SLICE = 2  # a slice of the split path takes so much of the cache: half


class Plan(NamedTuple):
    """How a scan is cut: chunks of time, rows of a group, groups in a ring, channels of a program.

    One stage: the rows of a group are in registers. More: a ring of stages - 1 groups of rows, in
    shared memory, copied asynchronously.
    """

    chunks: int
    rows: int
    stages: int
    block_n: int


def plan(device, B, T, N, itemsize, streams, vector):
    """How to cut B sequences of T steps and N channels whose steps read `streams` rows each, where
    rows are known to begin at multiples of `vector` bytes.

    A multiprocessor keeps memory busy with about 32 KiB in flight (latency times bandwidth: 0.9 us
    of an H200's 4.8 TB/s, over 132). In flight is a ring, or a group of rows, for each program.
    - ring: where the device copies asynchronously, which takes words of 4 bytes, and sequences are
      long enough to fill it. 28 KiB, so that an NVIDIA multiprocessor holds 3 to 7 programs.
    - block_n: 16 bytes a lane, or `vector`. Less, until there are 1.5 programs for every
      multiprocessor (a program alone is slow where its lanes have much to do) and at most a
      quarter of the lanes have no channel.
    - rows: 256 bytes a lane, which the registers hold without a spill, but 32 at most: what is
      unrolled further takes long to compile.
    - chunks: powers of two until two thirds of the goal are in flight: chunks read the input twice,
      which costs half as much again. Where there are several, and each is longer than a launch
      takes, there are more of them until every multiprocessor has 4 programs. Each is 4 groups of
      rows at least, and their number below sqrt(T) / 2, because the carry takes them one by one.
    """
    ring = device.family in ASYNCHRONOUS and vector >= 4
    lane = vector if ring else 16
    least = max(4, 2 * itemsize) if ring else itemsize

    def padded(lane):
        block_n = lane * device.lanes // itemsize
        return math.ceil(N / block_n) * block_n

    while lane > least and (
        2 * B * padded(lane) * itemsize < 3 * device.multiprocessors * lane * device.lanes
        or 4 * padded(lane) > 5 * N
    ):
        lane //= 2
    block_n = lane * device.lanes // itemsize
    rows = min(256 // lane, 32) // streams
    group = streams * rows * lane * device.lanes
    stages = 1 + RING // group if ring and 4 * rows <= T else 1
    in_flight = B * N * itemsize * streams * rows * max(stages - 1, 1)
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
    """How a fused kernel is cut, and how the device lays out an accumulator."""

    block_n: int
    block_t: int
    block_k: int
    warps: int
    stages: int
    lanes: int
    run: int
    ahead: bool = False  # weights of all blocks of K stay; a tile's input is loaded ahead


def tile(family, N, K, itemsize, backward, aligned, chained=False):
    """The tile of a fused kernel: as large as keeps the recurrence in registers, without a spill
    (but for 16 and 48 bytes on two devices with all options at once).

    Where rows are not multiples of 16 bytes, loads are one element wide and pointers take
    registers: smaller tiles. Weights of one block of K stay in shared memory. So do those of more
    blocks as far as they fit, with smaller tiles, because the next tile's input lies in registers
    meanwhile; but not in a chain, whose programs take one tile each.
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
        # Of 128 bytes, or of several times that as far as K is a multiple: each block of Hopper's
        # and Blackwell's products is waited for. But large blocks take registers.
        block_k = 128 // itemsize
        blocks = math.ceil(K / block_k)
        if family == "wgmma" and not backward:
            block_k *= blocks & -blocks
        elif family in ("wgmma", "tcgen05"):
            block_k *= min(blocks & -blocks, 2)
        block_t = min(block_t, 32 if family == "tcgen05" else 64)
    return Tile(block_n, block_t, block_k, warps, stages, rates.lanes, rates.run, ahead)


def constants_of(cut, K, lanes):
    """The fused kernels' compile-time arguments that follow from their tile and a warp's lanes."""
    blocks_k = math.ceil(K / cut.block_k)
    return {
        "EVEN_K": K % cut.block_k == 0,
        "BLOCKS_K": blocks_k if cut.ahead or blocks_k == 1 else 0,
        "AHEAD": cut.ahead,
        "LANES": cut.lanes,
        "RUN": cut.run,
        "LEVELS": (cut.block_t // cut.lanes).bit_length() - 1,
        "BLOCK_T": cut.block_t,
        "BLOCK_N": cut.block_n,
        "BLOCK_K": cut.block_k,
        "STAGES": cut.stages,
        "COPIES": max(1, cut.warps * lanes // cut.block_n),
    }


def options_of(cut):
    """How Triton is to compile them."""
    return {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}


def fused_time(device, B, T, K, N, itemsize, backward, cut, chained):
    """Of the fused kernel: each program walks all tiles of a sequence, or one of a chain."""
    family = FAMILIES[device.family]
    blocks_k = math.ceil(K / cut.block_k)
    product = cut.block_n * cut.block_t * blocks_k * cut.block_k / (family.products * 2 // itemsize)
    stay = (cut.ahead or blocks_k == 1) and not chained
    weights = cut.block_n * K * itemsize / CACHE_RATE
    traffic = cut.block_t * K * itemsize / CACHE_RATE + (0 if stay else weights)
    each_element = family.backward if backward else family.forward
    if cut.ahead:  # 16 bytes are loaded and stored at a time, and their addresses computed
        each_element += K * itemsize / (2 * cut.block_n)
    recurrence = each_element * cut.block_n * cut.block_t / (4 * device.lanes)
    alone = max(product, traffic) + recurrence + LATENCY
    busy = max(product, traffic, recurrence)
    programs, tiles, hops = B * math.ceil(N / cut.block_n), math.ceil(T / cut.block_t), 0
    if chained:
        programs, tiles, hops = programs * tiles, 1, tiles * HOP
    each = math.ceil(programs / device.multiprocessors)
    at_once = 8 // cut.warps  # as many as the registers hold
    if device.family == "wgmma" and cut.ahead and not backward and K * itemsize <= 512:
        at_once = 2
    compute = tiles * max(each * busy, math.ceil(each / at_once) * alone)
    if stay:
        compute += each * weights
    rows = K + 2 * N if backward else K + N
    return LAUNCH + max(compute, hops, _memory(device, B * T * rows * itemsize))


def split_time(device, B, T, K, N, itemsize, backward, slices):
    """Of the library's product, then the scan in place, both on slices in turn."""
    family = FAMILIES[device.family]
    rate = LIBRARY * family.products * 2 // itemsize
    product = max(
        B * T * K * N / (device.multiprocessors * rate), _memory(device, B * T * (K + N) * itemsize)
    )
    streams = 2 if backward else 1
    cut = plan(device, B, T, N, itemsize, streams, math.gcd(16, N * itemsize))
    size = B * T * N * itemsize
    passes = 1 + streams + (streams if cut.chunks > 1 else 0)
    scan = _memory(device, passes * size)
    if size <= slices * device.cache // SLICE:
        scan = passes * size / (device.multiprocessors * CACHE_RATE)
    return product + scan + slices * LAUNCH * (2 if cut.chunks == 1 else 4)


def _memory(device, size):
    return size / (device.multiprocessors * FAMILIES[device.family].memory)


class Choice(NamedTuple):
    """How a layer is computed: fused with this tile, or, without one, split in slices."""

    tile: Tile | None
    chained: bool
    slices: int


@functools.lru_cache(maxsize=4096)
def choose(device, strategy, B, T, K, N, itemsize, backward, aligned, can_chain, most_slices):
    """The fastest way by the model, of those that `strategy` and the flags allow.

    N counts the channels of one direction, B sequences and directions. most_slices: 1 where the
    sequences cannot be taken in turn.
    """
    ways = []
    if strategy != "split":
        shortest = tile(device.family, N, K, itemsize, backward, aligned).block_t
        for chained in (False, True) if can_chain and shortest < T else (False,):
            cut = tile(device.family, N, K, itemsize, backward, aligned, chained)
            time = fused_time(device, B, T, K, N, itemsize, backward, cut, chained)
            ways.append((time, Choice(cut, chained, 1)))
    if strategy != "fused":
        slices = math.ceil(B * T * N * itemsize * SLICE / max(device.cache, 1))
        for n in {1, max(1, min(slices, most_slices))}:
            time = 0.0
            if device.family:
                time = split_time(device, B, T, K, N, itemsize, backward, n)
            ways.append((time, Choice(None, False, n)))
    return min(ways, key=lambda way: way[0])[1]
