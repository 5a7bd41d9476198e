"""Train an IndRNN on an algorithm, and an LSTM of as many parameters beside it.

The problems are those of Graves et al. 2014 (arXiv 1410.5401), chosen by --problem: copy a sequence
of random vectors, repeat one, recall the item that followed another, predict a random source of
bits, sort vectors by priority. Every step has fresh data, the sequences of a batch are equally
long, and the longest ones come in over the first half of the training. The figure is the cost of a
sequence in bits, over sequences that are never trained on and are the same in all runs; then that
of sequences of one size each, most of them longer than any that is trained on.

The defaults train on 320,000 sequences; the paper's networks have up to a million. The IndRNNs have
layer norm, and half of their neurons start with u = 1: a network that copies has to count the
steps, to store each vector by its place, and to read it by its place, and each is a layer. With
--problem copy-places the inputs say the place, which shows how much of the work the counting is.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench import arguments
from bench.tasks import models
from bench.tasks.data import generator
from bench.tasks.run import Task

SEED = 2**40  # of the sequences that are not trained on
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
# Bits of Graves et al.'s LSTMs, of three layers of 128 to 512 neurons, at the end.
PUBLISHED = {
    "copy": "about 2",
    "repeat": "solved",
    "recall": "1 to 2",
    "ngrams": "137",
    "sort": "50",
}
LAYERS = {"indrnn": 5, "residual": 2, "dense": None}
BATCHES, HELD_OUT = 20, 32  # that are held out, and their size


class Algorithms(Task):
    shown, gradient_norm = "bits", 1.0
    data_label = "random, as in Graves et al. 2014"
    SETTINGS: ClassVar = Task.SETTINGS | {
        "problem": ("copy", tuple(PROBLEMS), "what is to be learned"),
        "model": (["residual", "lstm"], *Task.SETTINGS["model"][1:]),
        "layers": (None, arguments.integer(1), "recurrent layers, 5; residual: blocks, 2; else 1"),
        "hidden": (192, arguments.integer(1), "neurons of a layer; dense: 8 times the growth"),
        "steps": (10000, arguments.integer(1), "training steps at most"),
        "lr": (2e-3, arguments.positive, "learning rate of Adam, to the middle; then falling"),
        "growing": (5000, arguments.integer(0), "steps until the sequences are as long as any"),
    }
    FULL: ClassVar = {"steps": 100_000, "growing": 20_000, "hidden": 512}

    def prepare(self):
        self.problem = PROBLEMS[self.settings["problem"]]
        source = torch.Generator(self.settings["device"]).manual_seed(SEED)
        self.held_out = [self.make_batch(source, HELD_OUT) for _ in range(BATCHES)]
        self.alone = {
            " x ".join(map(str, sizes)): [self.problem.make(source, 4 * HELD_OUT, *sizes)]
            for sizes in self.problem.alone
        }
        self.title = f"Algorithms: {self.settings['problem']}, cost in bits"

    def make_batch(self, source, batch, share=1.0):
        """Of random sizes, up to this share of the way from the least to the greatest."""
        sizes = []
        for low, high in self.problem.ranges:
            most = low + math.ceil(share * (high - low))
            options = {"device": source.device, "generator": source}
            sizes.append(torch.randint(low, most + 1, (), **options).item())
        return self.problem.make(source, batch, *sizes)

    def layers_of(self, kind):
        return self.settings["layers"] or LAYERS.get(kind, 1)

    def make_model(self, kind, hidden, layers):
        inputs, answers = self.held_out[0]
        return Network(kind, inputs.shape[-1], hidden, layers, answers.shape[-1])

    def loss_of_step(self, learner, step):
        settings, source = self.settings, generator(self.settings, step)
        growing = settings["growing"]
        share = min(1.0, (step + 1) / growing) if growing else 1.0
        inputs, answers = self.make_batch(source, settings["batch"], share)
        logits = learner.model(inputs)[:, -answers.shape[1] :]
        return {"loss": binary_cross_entropy_with_logits(logits, answers)}

    def learning_rate(self, learner, step):
        return self.settings["lr"] * min(1.0, 2 * (1 - step / self.settings["steps"]) + 0.02)

    def evaluate(self, model):
        return {"bits": bits(model, self.held_out)}

    def finish(self, model):
        return {"alone": {name: bits(model, batches) for name, batches in self.alone.items()}}

    def facts(self):
        if self.settings["problem"] != "ngrams":
            return super().facts()
        costs = [least_bits(*batch) for batch in self.held_out]
        return {"least_bits": statistics.fmean(costs)} | super().facts()

    @classmethod
    def measured(cls, settings, result):
        alone = {f"bits at {sizes}": cost for sizes, cost in result.get("alone", {}).items()}
        return alone | super().measured(settings, result)

    @classmethod
    def published(cls, settings, kind):
        return (
            {"bits, validation": PUBLISHED.get(settings["problem"], "")} if kind == "lstm" else {}
        )


def bits(model, batches):
    """The mean cost of a sequence."""
    costs = []
    for inputs, answers in batches:
        logits = model(inputs)[:, -answers.shape[1] :]
        cost = binary_cross_entropy_with_logits(logits, answers, reduction="sum")
        costs.append(cost.item() / len(inputs) / math.log(2))
    return statistics.fmean(costs)


def count_and_store(u):
    """Half of the neurons forget nothing, for counters and stores; the others all but the last
    steps, for decisions."""
    forgetting = torch.rand_like(u) < 0.5
    return u.uniform_(0, 0.2).masked_fill_(~forgetting, 1.0)


class Network(nn.Module):
    """Inputs (B, T, I) to logits of bits (B, T, O). Sequences may be longer than any that is
    trained on: |u| is at most 1."""

    def __init__(self, kind, inputs, hidden, layers, outputs):
        super().__init__()
        ours = {"recurrent_max": 1.0, "recurrent_init": count_and_store, "norm": "layer"}
        options = ours if kind in models.OURS else {}
        self.recurrent = models.make(kind, inputs, hidden, layers, **options)
        self.head = nn.Linear(self.recurrent.output_size, outputs)

    def forward(self, inputs):
        return self.head(self.recurrent(inputs)[0])


add_arguments, run = Algorithms.add_arguments, Algorithms.run
