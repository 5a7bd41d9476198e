"""Train an IndRNN on the adding problem, and other networks beside it if asked.

A sequence of numbers drawn from U(0, 1), two of them marked, one in each half; the answer is the
sum of the two. Always answering 1 gives a mean squared error of 1/6. The settings are those of
Li et al. 2018 (arXiv 1803.04831) and of the authors' Theano code. The IndRNN has its clip inside
the recurrence, the others have theirs on the finished gradients.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.tasks import data, models
from bench.tasks.run import Task
from bench.tasks.training import WINDOW, Schedule
from fastindrnn import recurrent_max_for

CHANCE = 1 / 6


# Li et al. 2018, read off plotted curves: training steps until the error is about 0.01.
PUBLISHED = {
    (100, "indrnn"): "1,500",
    (100, "lstm"): "2,000",
    (100, "irnn"): "6,000 to 7,000",
    (500, "indrnn"): "2,000",
    (500, "lstm"): "6,000",
    (1000, "indrnn"): "3,000 to 4,000",
    (1000, "lstm"): "not in 60,000",
    (1000, "irnn"): "not in 60,000",
    (5000, "indrnn"): "15,000",
    **{(length, "rnn"): "never" for length in (100, 500, 1000)},
}


class Adding(Task):
    form = "{:,.4g}"
    SETTINGS: ClassVar = Task.SETTINGS | {
        "length": (1000, arguments.integer(2), "time steps of a sequence"),
        "steps": (60000, arguments.integer(1), "training steps at most"),
        "other-steps": (None, arguments.integer(1), "at most, of all but the first of --model"),
        "decay-every": (20000, arguments.integer(1), "steps until the rate falls to a tenth"),
        "target": (0.01, arguments.positive, "stop when the mean MSE of 100 steps is below this"),
    }
    FLAGS: ClassVar = Task.FLAGS | {"keep-going": "train for all of --steps, past the target too"}
    FULL: ClassVar = {"model": ["indrnn", "irnn", "lstm", "rnn"], "keep_going": True}
    MAY_CHANGE: ClassVar = Task.MAY_CHANGE | {"other_steps", "target", "keep_going"}

    def prepare(self):
        self.title = f"Adding problem, T = {self.settings['length']}"

    def make_model(self, kind, hidden, layers):
        return Regressor(kind, hidden, layers, self.settings)

    def loss_of_step(self, learner, step):
        settings = self.settings
        generator = data.generator(settings, step)
        inputs, answers = make_batch(settings["batch"], settings["length"], generator)
        return {"loss": nn.functional.mse_loss(learner.model(inputs), answers)}

    def learning_rate(self, learner, step):
        return self.settings["lr"] * 0.1 ** (step // self.settings["decay_every"])

    def clip_gradients(self, kind, model, optimizer):
        if kind not in models.OURS:
            super().clip_gradients(kind, model, optimizer)

    def schedule(self, learner):
        settings = self.settings
        is_first = learner is self.learners[0]
        return Schedule(
            steps=settings["steps"] if is_first else settings["other_steps"] or settings["steps"],
            seconds=settings["seconds"] or float("inf"),
            target=settings["target"],
            stops_at_target=not settings["keep_going"],
            log_every=settings["log_every"],
        )

    @classmethod
    def measured(cls, settings, result):
        steps, error = result["steps_to_target"], result["running_loss"]
        return {"last error": error, f"steps to an error of {settings['target']}": steps}

    @classmethod
    def published(cls, settings, kind):
        text = PUBLISHED.get((settings["length"], kind), "")
        return {"steps to an error of 0.01": text} if settings["target"] == 0.01 else {}

    @classmethod
    def overview(cls, reports):
        seen = "the error on the adding problem against steps, for each length and network"
        return {"lengths": (seen, partial(draw_lengths, reports))}

    def facts(self):
        return {"chance": CHANCE} | super().facts()

    def draw_curves(self, figure):
        super().draw_curves(figure)
        (axes,) = figure.axes
        axes.axhline(CHANCE, label="always answering 1", color="grey", linestyle="--")
        axes.legend()


def draw_lengths(reports, figure):
    """A panel for each length, with the error of every network and seed against steps."""
    lengths = sorted({report["settings"]["length"] for report in reports})
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    kinds = sorted({kind for report in reports for kind in report["settings"]["model"]})
    for axes, length in zip(panels, lengths, strict=True):
        shown = [report for report in reports if report["settings"]["length"] == length]
        for report in shown:
            for kind, result in zip(
                report["settings"]["model"], report["models"].values(), strict=True
            ):
                steps, errors = zip(*(line.values() for line in result["curve"]), strict=True)
                axes.plot(steps, errors, label=kind, color=f"C{kinds.index(kind)}")
        axes.axhline(CHANCE, color="grey", linestyle="--", label="always answering 1")
        axes.set(title=f"T = {length:,}", xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        names = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(names.values(), names.keys(), fontsize=7)
    panels[0].set(ylabel=f"error, mean of {WINDOW} steps", ylim=(0.005, 1))


def make_batch(size, length, generator):
    """Inputs (size, length, 2): the numbers and the marks; answers (size, 1)."""
    device = generator.device
    inputs = torch.zeros(size, length, 2, device=device)
    numbers, marks = inputs.unbind(-1)
    numbers.uniform_(generator=generator)
    half = length // 2
    first = torch.randint(half, (size, 1), device=device, generator=generator)
    second = torch.randint(half, length, (size, 1), device=device, generator=generator)
    marks.scatter_(1, first, 1.0).scatter_(1, second, 1.0)
    return inputs, numbers.gather(1, first) + numbers.gather(1, second)


class Regressor(nn.Module):
    """A recurrent network read out at its last state."""

    def __init__(self, kind, hidden, layers, settings):
        super().__init__()
        length, ours = settings["length"], {}
        if kind in models.OURS:
            ours = {
                "norm": None,
                "recurrent_max": recurrent_max_for(length),
                "recurrent_init": models.long_memory_last(kind, layers, length, gamma=2),
                "grad_clip": Adding.gradient_clip,
            }
        self.recurrent = models.make(kind, 2, hidden, layers, **ours)
        if kind in models.OURS:
            for name, parameter in self.recurrent.named_parameters():
                if name.startswith("weight_ih"):
                    nn.init.normal_(parameter, std=0.001)
        self.head = nn.Linear(self.recurrent.output_size, 1)
        nn.init.xavier_uniform_(self.head.weight)  # as in the authors' code: Lasagne's default
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs):
        return self.head(self.recurrent(inputs)[0][:, -1])


add_arguments, run = Adding.add_arguments, Adding.run
