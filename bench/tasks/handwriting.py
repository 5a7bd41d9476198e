"""Train networks to write: what a pen does next, as a mixture of 20 bivariate Gaussians.

A character is a sequence of moves (dx, dy) of the pen, each with what it does then: it goes on, is
lifted, or is lifted for good. From all moves so far a network gives the density of the next one
(Graves 2013, arXiv 1308.0850, whose data, IAM-OnDB, are not free: Omniglot stands in for them). The
file holds whole pixels, on which a narrow Gaussian could put any density: each move gets noise as
wide as a pixel, in evaluation always the same. The figure is the negative log likelihood of a move
and of what the pen does then, in nats, after division by the moves' standard deviation. The rate
falls to 0 over --steps or --seconds, whichever ends the training. The paper trains until nothing
improves, the default for minutes.

At the end each network draws characters, behind the first third of real ones and freely; --bias
makes them neater. The file is read with allow_pickle=True, which runs code of whoever made it: get
it from a source that you trust. No other file is read so.
"""

import pickle
import zipfile
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, mixture, models
from bench.tasks.run import Task
from fastindrnn import recurrent_max_for

FILE = "omniglot_stroke3.npz"
SOURCE = "the folder omniglot of https://github.com/hardmaru/sketch-rnn-datasets has it"
PARTS = {"train": "train", "validation": "valid", "test": "test"}  # and their names in the file
PIXEL = 6  # the side of a tablet's pixel, about: characters were stretched to a side of 600
INPUTS = 2 + len(mixture.PEN)
LAYERS = {"residual": 2, "dense": None, "lstm": 1, "gru": 1}
EVALUATION_BATCH = 250


class Handwriting(Task):
    title = "Handwriting, characters of Omniglot"
    shown, data_label, rate_falls = "nats per move", "in place of IAM-OnDB", True
    SETTINGS: ClassVar = Task.SETTINGS | {
        "data": data.SETTING,
        "model": (["residual", "lstm"], *Task.SETTINGS["model"][1:]),
        "layers": (None, arguments.integer(1), "of each network (default: 2, of lstm and gru 1)"),
        "parameters": (300_000, *Task.SETTINGS["parameters"][1:]),
        "batch": (64, *Task.SETTINGS["batch"][1:]),
        "steps": (100_000, *Task.SETTINGS["steps"][1:]),
        "seconds": (240.0, *Task.SETTINGS["seconds"][1:]),
        "evaluate-every": (500, *Task.SETTINGS["evaluate-every"][1:]),
        "lr": (2e-3, *Task.SETTINGS["lr"][1:]),
        "sample": (8, arguments.integer(1), "characters of each kind to draw at the end"),
        "bias": (1.0, arguments.at_least_zero, "of what is drawn towards the likely; 0: none"),
    }
    MAY_CHANGE: ClassVar = Task.MAY_CHANGE | {"sample", "bias"}

    def prepare(self):
        self.parts = read(data.find(self.settings, FILE, SOURCE))
        self.scale = torch.cat(self.parts["train"])[:, :2].std().item()
        lengths = torch.tensor([len(character) for character in self.parts["train"]])
        self.longest, self.mean_length = lengths.max().item(), lengths.float().mean().item()
        self.shuffled = data.Shuffled(len(lengths), self.settings, lengths)

    def layers_of(self, kind):
        return self.settings["layers"] or LAYERS.get(kind, 2)

    def make_model(self, kind, hidden, layers):
        return Writer(kind, hidden, layers, self.longest, self.settings["dropout"])

    def batch(self, characters, generator):
        """Moves (B, T, 2) with noise, what the pen does after each (B, T), and lengths (B,)."""
        lengths = torch.tensor([len(character) for character in characters])
        padded = pad_sequence(characters, batch_first=True)
        padded, lengths = padded.to(generator.device), lengths.to(generator.device)
        moves, pen = padded[..., :2], padded[..., 2].long()
        noise = torch.rand(moves.shape, device=moves.device, generator=generator) - 0.5
        return (moves + PIXEL * noise) / self.scale, pen, lengths

    def loss_of(self, model, characters, generator):
        """Their negative log likelihood, summed over all moves."""
        moves, pen, lengths = self.batch(characters, generator)
        densities, _ = model(behind_start(moves, pen)[:, :-1], lengths=lengths)
        is_real = torch.arange(moves.shape[1], device=moves.device) < lengths.unsqueeze(1)
        return -mixture.log_likelihood(densities, moves, pen)[is_real].sum()

    def loss_of_step(self, learner, step):
        characters = [self.parts["train"][index] for index in self.shuffled(step).tolist()]
        total = self.loss_of(learner.model, characters, data.generator(self.settings, step))
        # Not the mean over the moves of the step, or those of short characters would count more.
        return {"loss": total / (self.settings["batch"] * self.mean_length)}

    def evaluate(self, model):
        return {self.shown: self.mean_loss(model, "validation")}

    def finish(self, model):
        return {"test": {self.shown: self.mean_loss(model, "test")}}

    def mean_loss(self, model, part):
        """Negative log likelihood per move, by a model in evaluation."""
        characters, total = sorted(self.parts[part], key=len), 0.0
        generator = data.generator(self.settings)
        for first in range(0, len(characters), EVALUATION_BATCH):
            some = characters[first : first + EVALUATION_BATCH]
            total += self.loss_of(model, some, generator).item()
        return total / sum(len(character) for character in characters)

    def plots(self):
        return super().plots() | {"characters": self.draw_characters}

    def draw_characters(self, figure):
        """A row of real characters, and two for each network: with their beginnings, and freely."""
        real = self.parts["test"][: self.settings["sample"]]
        rows = {"real": [(character, 0) for character in real]}
        for learner in self.learners:
            begun = [character[: len(character) // 3] for character in real]
            rows[f"{learner.name}\nbegun"] = self.written(learner.model, begun)
            rows[f"{learner.name}\nfree"] = self.written(learner.model, [real[0][:0]] * len(real))
        panels = figure.subplots(len(rows), len(real), squeeze=False)
        for (name, characters), row in zip(rows.items(), panels, strict=True):
            row[0].set_ylabel(name, fontsize=6)
            for axes, (character, given) in zip(row, characters, strict=True):
                draw(axes, character, given)

    @torch.no_grad()
    def written(self, model, beginnings):
        """[(a character, how many of its moves were given)] of a network that goes on."""
        model.eval()
        found, generator = [], data.generator(self.settings)
        for beginning in beginnings:
            moves, pen, _ = self.batch([beginning], generator)
            moves, pen = model.write(moves, pen, self.longest, self.settings["bias"], generator)
            character = torch.cat((moves * self.scale, pen.unsqueeze(-1)), -1)
            found.append((character[0].cpu(), len(beginning)))
        model.train()
        return found


class Writer(nn.Module):
    """What was before each move (B, T, INPUTS) to the density of the move, and the states."""

    def __init__(self, kind, hidden, layers, longest, dropout):
        super().__init__()
        ours = {}
        if kind in models.OURS:
            # Not "batch": the characters of one batch are of one length, which is no sample of all.
            ours = {"norm": "layer", "recurrent_max": recurrent_max_for(longest)}
        self.recurrent = models.make(kind, INPUTS, hidden, layers, dropout=dropout, **ours)
        self.head = nn.Linear(self.recurrent.output_size, mixture.FEATURES)

    def forward(self, inputs, state=None, lengths=None):
        output, state = self.recurrent(inputs, state, lengths=lengths)
        return mixture.mixture_of(self.head(output)), state

    def write(self, moves, pen, longest, bias, generator):
        """Moves (1, T, 2) and what the pen does (1, T), with those behind them: until the pen is
        lifted for good, or there are `longest`."""
        inputs, state = behind_start(moves, pen), None
        while moves.shape[1] < longest and (pen[:, -1:] != mixture.ENDS).all():
            densities, state = self(inputs, state)
            last = mixture.Mixture(*(part[:, -1] for part in densities))
            move, after = mixture.draw(last, bias, generator)
            moves, pen = torch.cat((moves, move[:, None]), 1), torch.cat((pen, after[:, None]), 1)
            inputs = encode(moves[:, -1:], pen[:, -1:])
        return moves, pen


def encode(moves, pen):
    """Moves (B, T, 2) and what the pen does after each (B, T) as inputs (B, T, INPUTS)."""
    return torch.cat((moves, one_hot(pen, len(mixture.PEN)).to(moves.dtype)), -1)


def behind_start(moves, pen):
    """Inputs (B, 1 + T, INPUTS): zeros, then the moves. The density at each step is that of the
    next move."""
    return nn.functional.pad(encode(moves, pen), (0, 0, 1, 0))


def draw(axes, character, given):
    """Draws the strokes of a character (T, 3); those of its first `given` moves in grey."""
    points = np.concatenate((np.zeros((1, 2)), np.cumsum(character[:, :2].numpy(), 0)))
    is_down = np.concatenate(([True], character[:-1, 2].numpy() == mixture.GOES_ON))
    for index in np.flatnonzero(is_down):
        color = "grey" if index < given else "black"
        axes.plot(*points[index : index + 2].T, color=color, linewidth=1)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_yaxis()


def read(path):
    """{part: characters}, each (T, 3): dx, dy, and what the pen does then.

    The file's first row only stands for the point where a character begins.
    """
    try:
        with np.load(path, allow_pickle=True, encoding="latin1") as file:
            found = {part: list(file[name]) for part, name in PARTS.items()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.PickleError) as bad:
        raise UserError(f"{path} does not hold characters ({bad}); {SOURCE}") from None
    return {part: [with_end(rows) for rows in characters] for part, characters in found.items()}


def with_end(rows):
    character = torch.from_numpy(rows[1:].astype(np.float32))
    character[-1, 2] = mixture.ENDS
    return character


add_arguments, run = Handwriting.add_arguments, Handwriting.run
