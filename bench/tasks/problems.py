"""The problems of Graves et al. 2014, arXiv 1410.5401: fresh sequences with their answers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange

WIDTH, ITEM_WIDTH = 8, 6  # bits of a vector; of one in recall
ITEM = 3  # vectors
PLACES = 120  # of the longest sequence
CONTEXT = 5  # bits that decide the odds of the next one


def random_bits(source, *sizes):
    return torch.randint(2, sizes, device=source.device, generator=source).float()


def copy(source, batch, length):
    """Vectors, a mark; then the vectors again, without an input."""
    vectors = random_bits(source, batch, length, WIDTH)
    inputs = vectors.new_zeros(batch, 2 * length + 1, WIDTH + 1)
    inputs[:, :length, :WIDTH] = vectors
    inputs[:, length, WIDTH] = 1
    return inputs, vectors


def copy_with_places(source, batch, length):
    """Also channels that are 1 at one step each: those of the vectors, then of the answers."""
    inputs, answers = copy(source, batch, length)
    places = inputs.new_zeros(batch, 2 * length + 1, 2 * PLACES)
    one_each = torch.eye(length, device=source.device)
    places[:, :length, :length] = places[:, -length:, PLACES : PLACES + length] = one_each
    return torch.cat([inputs, places], -1), answers


def repeat(source, batch, length, repeats):
    """Vectors, a mark and how often; then the vectors so many times, and an end in one more
    channel."""
    vectors = random_bits(source, batch, length, WIDTH)
    inputs = vectors.new_zeros(batch, length + 2 + length * repeats, WIDTH + 2)
    inputs[:, :length, :WIDTH] = vectors
    inputs[:, length, WIDTH] = 1
    inputs[:, length, WIDTH + 1] = (repeats - 5.5) / math.sqrt(8.25)  # of 1 to 10: mean 0, std 1
    answers = vectors.new_zeros(batch, length * repeats + 1, WIDTH + 1)
    answers[:, :-1, :WIDTH] = vectors.repeat(1, repeats, 1)
    answers[:, -1, WIDTH] = 1
    return inputs, answers


def recall(source, batch, items):
    """Items of three vectors, each behind a mark; one of them between marks of another kind; then
    the item that followed it."""
    vectors = random_bits(source, batch, items, ITEM, ITEM_WIDTH)
    asked = torch.randint(items - 1, (batch,), device=source.device, generator=source)
    rows = torch.arange(batch, device=source.device)
    length = items * (ITEM + 1)
    inputs = vectors.new_zeros(batch, length + 2 * ITEM + 2, ITEM_WIDTH + 2)
    listed = rearrange(inputs[:, :length], "b (items t) c -> b items t c", items=items)
    listed[:, :, 0, ITEM_WIDTH] = 1
    listed[:, :, 1:, :ITEM_WIDTH] = vectors
    query = inputs[:, length:]
    query[:, [0, ITEM + 1], ITEM_WIDTH + 1] = 1
    query[:, 1 : ITEM + 1, :ITEM_WIDTH] = vectors[rows, asked]
    return inputs, vectors[rows, asked + 1]


def ngrams(source, batch, length):
    """Bits whose odds depend on the five before them, by a table that is drawn for each sequence;
    the answer to each is the next one."""
    # sin^2 of a uniform angle has the distribution Beta(1/2, 1/2).
    angles = torch.rand(batch, 2**CONTEXT, device=source.device, generator=source)
    odds = (angles * math.pi / 2).sin().square()
    bits = list(random_bits(source, CONTEXT, batch))
    for _ in range(length):
        chance = odds.gather(1, context_of(bits))[:, 0]
        bits.append(torch.bernoulli(chance, generator=source))
    bits = torch.stack(bits, 1)[..., None]
    return bits[:, :-1], bits[:, CONTEXT:]


def context_of(bits):
    """Which row of the table the last bits, tensors of (B,), choose: (B, 1)."""
    return sum(bit.long() << place for place, bit in enumerate(bits[-CONTEXT:]))[:, None]


def sort(source, batch, length):
    """Vectors with their priorities, a mark; then four fifths of them, by falling priority."""
    vectors = random_bits(source, batch, length, WIDTH)
    priorities = torch.rand(batch, length, device=source.device, generator=source) * 2 - 1
    kept = length * 4 // 5
    inputs = vectors.new_zeros(batch, length + 1 + kept, WIDTH + 2)
    inputs[:, :length, :WIDTH], inputs[:, :length, WIDTH] = vectors, priorities
    inputs[:, length, WIDTH + 1] = 1
    order = priorities.argsort(1, descending=True)[:, :kept, None]
    return inputs, vectors.take_along_dim(order, 1)


def least_bits(inputs, answers):
    """The mean cost of n-grams for the best predictor that does not know the table: the next bit
    is 1 with the odds (ones + 1/2) / (bits + 1), of what has followed the same five bits."""
    sequence = torch.cat([inputs[..., 0], answers[:, -1]], 1)
    rows = torch.arange(len(sequence), device=sequence.device)
    counts, cost = sequence.new_full((len(sequence), 2**CONTEXT, 2), 0.5), 0.0
    for end in range(CONTEXT, sequence.shape[1]):
        context = context_of(sequence[:, end - CONTEXT : end].unbind(1))[:, 0]
        following = counts[rows, context]
        bit = sequence[:, end].long()
        cost -= (following[rows, bit] / following.sum(1)).log2().mean().item()
        counts[rows, context, bit] += 1
    return cost


@dataclass(frozen=True)
class Problem:
    """make(generator, batch, *sizes) -> inputs (B, T, I), answers (B, S, O) of the last S steps."""

    make: Callable
    ranges: tuple  # (least, greatest) of each size, in training
    alone: tuple = ()  # sizes whose cost is measured by itself, at the end


PROBLEMS = {
    "copy": Problem(copy, ((1, 20),), ((10,), (20,), (30,), (50,), (120,))),
    "copy-places": Problem(copy_with_places, ((1, 20),), ((10,), (20,))),
    "repeat": Problem(repeat, ((1, 10), (1, 10)), ((10, 10), (20, 10), (10, 20))),
    "recall": Problem(recall, ((2, 6),), ((6,), (10,), (15,), (20,))),
    "ngrams": Problem(ngrams, ((200, 200),)),
    "sort": Problem(sort, ((20, 20),), ((30,),)),
}
