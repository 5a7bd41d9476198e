"""Train character language models that carry their state from chunk to chunk, and let them write.

The text is read by as many readers as --batch says, side by side, each of whom goes on where it
stopped; every pass through the text begins at another character. The first 90 % are trained on, the
next 5 % validate, the last 5 % test. The figure is bits per character. The rate falls to 0 over
--steps or --seconds, whichever ends the training. The papers train on the Penn Treebank, which is
not free: any text stands in for it, by default tinyshakespeare.txt. By default networks of 250,000
parameters train for 150 s each, in which the residual one read the text five times: the papers'
have 21 layers of 2,000 neurons.
"""

import math
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, models
from bench.tasks.run import Task

SOURCE = "https://github.com/karpathy/char-rnn holds tinyshakespeare.txt, as input.txt"
EMBEDDING = 128
EVALUATION_BATCH, EVALUATION_LENGTH = 16, 500
TEMPERATURE = 0.7  # of what is written
NORMS = "batch", "batch_per_step", "layer"
LAYERS = {"residual": 3, "lstm": 2, "gru": 2}
RATES = {"lstm": 8e-3, "gru": 8e-3}  # the best of 0.004 and 0.008 in short runs


class Chars(Task):
    data_label = "in place of the Penn Treebank"
    shown, gradient_norm, rate_falls = "bits per character", 1.0, True
    SETTINGS: ClassVar = Task.SETTINGS | {
        "data": data.SETTING,
        "model": (["residual", "lstm", "gru", "mingru"], *Task.SETTINGS["model"][1:]),
        "text": ("tinyshakespeare.txt", str, "file of the folder"),
        "layers": (
            None,
            arguments.integer(1),
            "of each network (default: 6, of lstm and gru 2; residual: 3 blocks of two)",
        ),
        "parameters": (250_000, *Task.SETTINGS["parameters"][1:]),
        "length": (100, arguments.integer(2), "time steps of a chunk"),
        "steps": (100_000, *Task.SETTINGS["steps"][1:]),
        "seconds": (150.0, *Task.SETTINGS["seconds"][1:]),
        "evaluate-every": (300, *Task.SETTINGS["evaluate-every"][1:]),
        "lr": (
            None,
            arguments.positive,
            "learning rate of Adam (default: 0.004, of lstm and gru 0.008)",
        ),
        "norm": ("batch", NORMS, "of the networks of this package"),
        "bound": (0.99, arguments.positive, "of |u|"),
        "sample": (300, arguments.integer(1), "characters that each network writes at the end"),
    }
    # Li et al. 2019, arXiv 1910.06251: residual, 21 layers, chunks of 50.
    FULL: ClassVar = {
        **{"model": ["residual"], "layers": 10, "hidden": 2000, "parameters": None},
        **{"batch": 128, "length": 50, "lr": 2e-4, "dropout": 0.3, "norm": "batch_per_step"},
        **{"steps": 100_000, "seconds": None},
    }

    def prepare(self):
        settings = self.settings
        text = data.find(settings, settings["text"], SOURCE).read_text(encoding="utf-8")
        self.alphabet = sorted({*text, " "})
        number = {character: index for index, character in enumerate(self.alphabet)}
        symbols = torch.tensor([number[character] for character in text])
        parts = symbols.to(settings["device"]).tensor_split(
            [len(symbols) * 90 // 100, len(symbols) * 95 // 100]
        )
        self.text = dict(zip(("train", "validation", "test"), parts, strict=True))
        count, length = settings["batch"], settings["length"]
        self.readers = parts[0][: len(parts[0]) // count * count].view(count, -1)
        self.chunks = (self.readers.shape[1] - 1) // length - 1  # of a pass
        if self.chunks < 1 or len(parts[1]) <= EVALUATION_BATCH:
            raise UserError(f"{settings['text']}: {len(text)} characters are too few")
        seconds, steps = settings["seconds"], settings["steps"]
        by_steps = seconds is None or steps < self.SETTINGS["steps"][0]
        limit = f"{steps} steps" if by_steps else f"{seconds:g} s"
        self.title = f"Characters of {settings['text']}, {limit} each"

    def layers_of(self, kind):
        return self.settings["layers"] or LAYERS.get(kind, 6)

    def first_rate(self, kind):
        return self.settings["lr"] or RATES.get(kind, 4e-3)

    def make_model(self, kind, hidden, layers):
        return LanguageModel(kind, len(self.alphabet), hidden, layers, self.settings)

    def loss_of_step(self, learner, step):
        turn, place = divmod(step, self.chunks)
        generator, length = data.generator(self.settings, turn), self.settings["length"]
        first = torch.randint(length, (), device=generator.device, generator=generator)
        start = first.item() + place * length
        symbols = self.readers[:, start : start + length + 1]
        logits, carried = learner.model(symbols[:, :-1], learner.carried if place else ())
        learner.carried = tuple(part.detach() for part in carried)
        return {"loss": bits(logits, symbols[:, 1:])}

    def evaluate(self, model):
        return {self.shown: mean_bits(model, self.text["validation"])}

    def finish(self, model):
        test = {self.shown: mean_bits(model, self.text["test"])}
        return {"test": test, "written": self.write(model)}

    def write(self, model):
        """Text, character by character: each costs the same, however long the text is."""
        generator = data.generator(self.settings)
        symbol = torch.tensor([[self.alphabet.index(" ")]], device=generator.device)
        carried, written = (), []
        for _ in range(self.settings["sample"]):
            logits, carried = model(symbol, carried)
            chances = (logits[:, -1] / TEMPERATURE).softmax(-1)
            symbol = torch.multinomial(chances, 1, generator=generator)
            written.append(self.alphabet[symbol.item()])
        return "".join(written)


class LanguageModel(nn.Module):
    """Symbols (B, T), and the states to go on from or (), to logits (B, T, symbols) and states."""

    def __init__(self, kind, symbols, hidden, layers, settings):
        super().__init__()
        ours = {}
        if kind in models.OURS:
            ours = {"norm": settings["norm"], "recurrent_max": settings["bound"], "grad_clip": 10.0}
            if settings["norm"] == "batch_per_step":
                ours |= {"norm_position": "before", "norm_steps": settings["length"]}
        self.embedding = nn.Embedding(symbols, EMBEDDING)
        dropout = settings["dropout"]
        self.recurrent = models.make(kind, EMBEDDING, hidden, layers, dropout=dropout, **ours)
        self.head = nn.Linear(self.recurrent.output_size, symbols)
        self.dropout, self.is_lstm = nn.Dropout(dropout), kind == "lstm"

    def forward(self, symbols, carried=()):
        state = (carried if self.is_lstm else carried[0]) if carried else None
        output, state = self.recurrent(self.embedding(symbols), state)
        return self.head(self.dropout(output)), state if self.is_lstm else (state,)


def bits(logits, symbols):
    """Cross entropy per character."""
    return cross_entropy(logits.flatten(0, 1), symbols.flatten()) / math.log(2)


def mean_bits(model, text):
    """Bits per character of a text, which EVALUATION_BATCH readers read side by side."""
    pieces = text[: len(text) // EVALUATION_BATCH * EVALUATION_BATCH].view(EVALUATION_BATCH, -1)
    total, carried, last = 0.0, (), pieces.shape[1] - 1
    for start in range(0, last, EVALUATION_LENGTH):
        chunk = pieces[:, start : start + EVALUATION_LENGTH + 1]
        logits, carried = model(chunk[:, :-1], carried)
        total += bits(logits, chunk[:, 1:]).item() * logits.shape[1]
    return total / last


add_arguments, run = Chars.add_arguments, Chars.run
