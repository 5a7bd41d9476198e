"""How the work of a call is divided: into channel blocks, chunks of time and threads."""

import math
from typing import NamedTuple

# A block has at most so many channels that their state, u, bias and buffers fit the first-level
# cache, and at least those of a few cache lines.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 1024, 64
# Time is divided only in tensors of so many elements, and into chunks of so many steps.
_LEAST_ELEMENTS, _LEAST_STEPS = 1 << 18, 64


class Plan(NamedTuple):
    block_size: int  # channels of a block
    channel_blocks: int  # of a sequence
    chunks: int  # of time


def plan(B, T, N, threads, in_place, chunks=None):
    """How to divide B sequences of T steps and N channels, all of one direction.

    in_place: whether the loop writes to memory that it also reads. A backward counts as such a loop
    wherever it writes. chunks: their number, where the caller sets it.

    Threads can share a sequence in two ways, and the one with the smaller estimate of its time is
    taken. The unit of the estimates is the time of one sequence on one thread.

    Channel blocks: the threads read and write the same pages of memory and are slower for it, by
    the factor `sharing`, but not where blocks are as large as a page.

    Chunks of time: chunk 0 and some `others`, each with twice the steps of chunk 0. First a thread
    runs chunk 0 while further ones summarize others, which takes `summary` times as long as to run
    them. Then the threads run the others.

    Speed of 2 threads against 1 at (1, 65536, 256), float32:

                                                     channel blocks    3 chunks
        forward, to memory just allocated            1.0               1.4
        forward, to memory that was in use before    1.0 to 1.3        1.5
        forward, in place                            1.35              1.0
        backward, to memory just allocated           1.15              1.4
        backward, to memory that was in use before   1.8               1.5
    """
    if B == 0 or N == 0:
        return Plan(1, 0, 1)
    blocks = _channel_blocks(B, N, threads)
    if chunks is None:
        chunks = 1
        sharing, summary = (1.3, 1.0) if in_place else (1.6, 0.5)
        best = _rounds(B * blocks, threads) / blocks
        if blocks > N / _LARGEST_BLOCK:
            best *= sharing
        if threads > B and B * T * N >= _LEAST_ELEMENTS:
            for others in range(2, 2 * threads):
                time = _rounds(B * others, threads) * (1 + summary) / (others + summary)
                if time < 0.999 * best and _LEAST_STEPS * others <= T:
                    best, chunks = time, others + 1
    if chunks > 1:
        blocks = math.ceil(N / _LARGEST_BLOCK)
    return Plan(math.ceil(N / blocks), blocks, chunks)


def _rounds(tasks, threads):
    """How many tasks the busiest thread has."""
    return math.ceil(tasks / threads)


def _channel_blocks(B, N, threads):
    """Channel blocks of a sequence: the fewest for which all threads have about as much to do.

    Few, because memory is read fastest in long pieces.
    """
    blocks = math.ceil(N / _LARGEST_BLOCK)
    while blocks * _SMALLEST_BLOCK < N:
        work_items = B * blocks
        if _rounds(work_items, threads) * threads <= 1.1 * work_items:
            break
        blocks += 1
    return math.ceil(N / math.ceil(N / blocks))  # none of them empty
