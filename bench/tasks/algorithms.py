"""Train an IndRNN on an algorithm, and an LSTM of as many parameters beside it.

The problems are those of Graves et al. 2014 (arXiv 1410.5401), chosen by --problem: copy a sequence
of random vectors, repeat one, recall the item that followed another, predict a random source of
bits, sort vectors by priority. Every step has fresh data, the sequences of a batch are equally
long, and the longest ones come in over the first half of the training. The figure is the cost of a
sequence in bits, over sequences that are never trained on and are the same in all runs; then that
of sequences of one size each, most of them longer than any that is trained on. --model ntm is a
small neural Turing machine.

The defaults train on 320,000 sequences; the paper's networks have up to a million. The IndRNNs have
layer norm, and half of their neurons start with u = 1: a network that copies has to count the
steps, to store each vector by its place, and to read it by its place, and each is a layer. With
--problem copy-places the inputs say the place, which shows how much of the work the counting is.
"""

import math
import statistics
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from bench import arguments
from bench.tasks import models
from bench.tasks.data import generator
from bench.tasks.ntm import NeuralTuringMachine
from bench.tasks.problems import PROBLEMS, least_bits
from bench.tasks.run import Task

SEED = 2**40  # of the sequences that are not trained on
# Bits of Graves et al.'s LSTMs, of three layers of 128 to 512 neurons, at the end.
PUBLISHED = {
    "copy": "about 2",
    "repeat": "solved",
    "recall": "1 to 2",
    "ngrams": "137",
    "sort": "50",
}
LAYERS = {"indrnn": 5, "residual": 2, "dense": None}
KINDS = *models.KINDS, "ntm"
BATCHES, HELD_OUT = 20, 32  # that are held out, and their size


class Algorithms(Task):
    shown, gradient_norm = "bits", 1.0
    data_label = "random, as in Graves et al. 2014"
    SETTINGS: ClassVar = Task.SETTINGS | {
        "problem": ("copy", tuple(PROBLEMS), "what is to be learned"),
        "model": (["residual", "lstm"], arguments.several(KINDS), f"some of {', '.join(KINDS)}"),
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
        if kind == "ntm":
            self.recurrent = NeuralTuringMachine(inputs, hidden)
        else:
            options = ours if kind in models.OURS else {}
            self.recurrent = models.make(kind, inputs, hidden, layers, **options)
        self.head = nn.Linear(self.recurrent.output_size, outputs)

    def forward(self, inputs):
        return self.head(self.recurrent(inputs)[0])


add_arguments, run = Algorithms.add_arguments, Algorithms.run
