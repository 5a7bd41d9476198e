"""What the tasks share that give a whole series one label: the format of files, network, figure.

The archive timeseriesclassification.com describes its format, .ts: lines that begin with # or @,
@data the last of them; then a line for each series: the values of the first channel with commas
between them, a colon, those of the second channel, and so on; behind the last colon the label.
"""

import hashlib
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, models
from bench.tasks.run import BY_EPOCHS, Task

EVALUATION_BATCH = 250
HELD_OUT = 5  # with --validate, every fifth series


def load(path):
    """([values of a series (T, channels)], [its label, a word], SHA-256 of the file)."""
    content = path.read_bytes()
    _, found, body = content.decode().partition("@data\n")
    try:
        rows = [line.split(":") for line in body.split("\n") if line.strip()]
        channels = [[list(map(float, part.split(","))) for part in row[:-1]] for row in rows]
        series = [torch.tensor(values).t() for values in channels]
    except ValueError as error:  # no number; or channels that differ in length
        raise UserError(f"{path} is no .ts file of series without gaps: {error}") from None
    if not found or not series or len({values.shape[1:] for values in series}) > 1:
        raise UserError(f"{path} is no .ts file of series with the same channels")
    return series, [row[-1].strip() for row in rows], hashlib.sha256(content).hexdigest()


class Classification(Task):
    """A task gives `load`, `make_model` and `inputs`."""

    shown, form, rate_falls = "accuracy", "{:.1%}", True
    SETTINGS: ClassVar = BY_EPOCHS | {
        "data": data.SETTING,
        "weight-decay": (1e-4, arguments.at_least_zero, "of matrices"),
    }
    FLAGS: ClassVar = Task.FLAGS | {
        "bidirectional": "each layer in both directions",
        "validate": "hold out every fifth training series, and leave the test series alone: to "
        "choose settings with",
    }
    evaluations = 10  # of a run

    def load(self):
        """({"train": labels (N,), "test": ...}, words for the labels, {file: hash}); keeps what
        `inputs` needs."""
        raise NotImplementedError

    def inputs(self, part, chosen, generator):
        """What the model gets for the chosen series of a part. With a generator, which there is in
        training alone, it may be changed at random."""
        raise NotImplementedError

    def answers(self, part, chosen):
        """The labels that the model is to tell, in the order of its logits."""
        return self.labels[part][chosen]

    @staticmethod
    def figure(right):
        """Of the share that is told right."""
        return right

    def prepare(self):
        settings = self.settings
        self.labels, self.words, hashes = self.load()
        if settings.setdefault("hashes", hashes) != hashes:
            raise UserError("these are other series than the run to resume has seen")
        count = len(self.labels["train"])
        device = settings["device"]
        self.chosen = {
            "train": torch.arange(count, device=device),
            "test": torch.arange(len(self.labels["test"]), device=device),
        }
        if settings["validate"]:
            is_held_out = self.chosen["train"] % HELD_OUT == HELD_OUT - 1
            del self.chosen["test"]
            self.chosen["validation"] = self.chosen["train"][is_held_out]
            self.chosen["train"] = self.chosen["train"][~is_held_out]
        self.shuffled = data.Shuffled(len(self.chosen["train"]), settings)
        settings["steps"] = settings["epochs"] * self.shuffled.steps
        every = -(-settings["epochs"] // self.evaluations)
        settings["evaluate_every"] = every * self.shuffled.steps

    def loss_of_step(self, learner, step):
        chosen = self.chosen["train"][self.shuffled(step)]
        generator = data.generator(self.settings, step)
        logits = learner.model(*self.inputs("train", chosen, generator))
        labels = self.answers("train", chosen)
        right = (logits.argmax(1) == labels).float().mean()
        return {"loss": cross_entropy(logits, labels), self.shown: self.figure(right)}

    def evaluate(self, model):
        """On the test series, or those held out. No choice is made by the figures of a run: the
        last one counts."""
        held_out = self.settings["validate"]
        part = "train" if held_out else "test"
        series, loss, right, count = self.chosen["validation" if held_out else "test"], 0.0, 0, 0
        for chosen in series.split(EVALUATION_BATCH):
            logits, labels = model(*self.inputs(part, chosen, None)), self.answers(part, chosen)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(1) == labels).sum().item()
            count += len(labels)
        return {self.shown: self.figure(right / count), "loss": loss / count}

    def facts(self):
        series = {part: len(chosen) for part, chosen in self.chosen.items()}
        return super().facts() | {"series": series, "labels": self.words}

    @classmethod
    def measured(cls, settings, result):
        part = "validation" if settings["validate"] else "test"
        lines = result["validations"]
        return {f"{cls.shown}, {part}": lines[-1][cls.shown] if lines else None}


class Classifier(nn.Module):
    """A recurrent network and a linear head on the last step of each sequence.

    Takes x (B, T, inputs) and lengths (B,), or None; gives logits (B, labels).
    """

    def __init__(self, kind, inputs, hidden, layers, labels, settings, **ours):
        super().__init__()
        ours = {"norm": "batch", **ours} if kind in models.OURS else {}
        self.recurrent = models.make(
            kind,
            inputs,
            hidden,
            layers,
            dropout=settings["dropout"],
            bidirectional=settings["bidirectional"],
            **ours,
        )
        self.dropout = nn.Dropout(settings["dropout"])
        self.head = nn.Linear(self.recurrent.output_size, labels)

    def forward(self, x, lengths=None):
        output, _ = self.recurrent(x, lengths=lengths)
        return self.head(self.dropout(last_step(output, lengths)))


def last_step(output, lengths=None):
    """(B, T, features) to (B, features), each sequence at its own last step."""
    if lengths is None:
        return output[:, -1]
    return output[torch.arange(len(output), device=output.device), lengths - 1]
