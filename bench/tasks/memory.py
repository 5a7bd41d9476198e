"""Draw what the papers claim about the memory of an IndRNN, beside other networks.

Networks of the same layers are trained on the adding problem, and four figures are drawn:

- curves: the training loss of each network.
- gradients: how much of the error of the last step gets back to each step: the norm of the gradient
  with respect to the input of a layer at a step, relative to the last step, for each layer, before
  and after the training. It vanishes, stays or explodes; there is no line where not even the error
  of the last step gets back to its own input.
- bounds: the training loss of IndRNNs with |u| <= gamma^(1/T), for some gamma.
- remembered: the recurrent weights u of the IndRNN and the half-lives of its neurons, for each
  layer, before and after the training.

The defaults are small, for a few minutes on a CPU: the papers have two layers of 128 and sequences
of up to 5000 steps. Li et al. 2018 (arXiv 1803.04831).
"""

from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.tasks import models
from bench.tasks.adding import Adding, make_batch
from bench.tasks.training import finite
from fastindrnn import recurrent_max_for
from fastindrnn.memory import read_memory

HELD_OUT = 2**40  # seed of the sequences whose gradients are drawn
GAMMA = 2.0  # of the IndRNN of --model
LEAST = 1e-12  # relative norm that is drawn


class Memory(Adding):
    SETTINGS: ClassVar = Adding.SETTINGS | {
        "model": (
            ["indrnn", "irnn", "rnn", "lstm"],
            arguments.several(("indrnn", *models.PYTORCH)),
            f"some of indrnn, {', '.join(models.PYTORCH)}",
        ),
        "gammas": (["1", "5", "10"], arguments.several(("1", "5", "10", "100")), "beside 2"),
        "layers": (3, arguments.integer(1), "recurrent layers"),
        "hidden": (64, arguments.integer(1), "neurons of a layer"),
        "length": (100, arguments.integer(2), "time steps of a sequence"),
        "steps": (1500, arguments.integer(1), "training steps at most"),
        "lr": (1e-3, arguments.positive, "learning rate of Adam"),
    }
    FULL: ClassVar = {"length": 1000, "steps": 20000, "hidden": 128, "lr": 2e-4, "keep_going": True}

    def __init__(self, settings):
        super().__init__(settings)
        self.bounded = {GAMMA: self.learners[settings["model"].index("indrnn")]}
        for gamma in map(float, settings["gammas"]):
            self.bounded[gamma] = self.make_learner("indrnn", gamma)
            self.learners.append(self.bounded[gamma])

    @classmethod
    def overview(cls, reports):
        return {}

    def prepare(self):
        if "indrnn" not in self.settings["model"]:
            raise arguments.UserError("--model must name indrnn: its memory is drawn")
        self.title = f"Memory, on the adding problem with T = {self.settings['length']}"

    def make_learner(self, kind, gamma=GAMMA):
        self.gamma = gamma
        learner = super().make_learner(kind)
        if gamma != GAMMA:
            learner.name += f", gamma {gamma:g}"
        return learner

    def make_model(self, kind, hidden, layers):
        return Layers(kind, hidden, layers, self.settings["length"], self.gamma)

    def before_and_after(self):
        """{name: (the network before the training, and as it is)} of those of --model."""
        names = self.settings["model"]
        with torch.random.fork_rng():  # a report is also written in the middle of the training
            return {
                learner.name: (self.make_learner(kind).model, learner.model)
                for kind, learner in zip(names, self.learners, strict=False)
            }

    def relative_gradients(self, model):
        """(layers, T): see the description of this module."""
        source = torch.Generator(self.settings["device"]).manual_seed(HELD_OUT)
        inputs, answers = make_batch(self.settings["batch"], self.settings["length"], source)
        inputs.requires_grad_()
        output, received = model.run(inputs)
        found = torch.autograd.grad(nn.functional.mse_loss(output, answers), received)
        norms = torch.stack([gradient.norm(dim=-1).mean(0) for gradient in found])
        return (norms / norms[:, -1:]).cpu()

    @torch.enable_grad()
    def finish(self, model):
        return {"gradient at first step, after": self.share_at_first_step(model)}

    def share_at_first_step(self, model):
        return [finite(share) for share in self.relative_gradients(model)[:, 0].tolist()]

    def facts(self):
        """The networks with other bounds apart."""
        found = super().facts()
        names = list(self.before_and_after())
        found["bounds"] = {
            name: found["models"].pop(name) for name in list(found["models"]) if name not in names
        }
        for name, (before, _) in self.before_and_after().items():
            share = self.share_at_first_step(before)
            found["models"][name]["gradient at first step, before"] = share
        return found

    @classmethod
    def measured(cls, settings, result):
        """Of the first layer."""
        shares = {
            f"gradient at first step, {when}": result[f"gradient at first step, {when}"][0]
            for when in ("before", "after")
        }
        return shares | super().measured(settings, result)

    @classmethod
    def published(cls, settings, kind):
        return {}

    def plots(self):
        return super().plots() | {
            "gradients": self.draw_gradients,
            "bounds": self.draw_bounds,
            "remembered": self.draw_remembered,
        }

    def draw_gradients(self, figure):
        grid = figure.subplots(2, self.settings["layers"], sharex=True, sharey=True, squeeze=False)
        for name, pair in self.before_and_after().items():
            for row, model in zip(grid, pair, strict=True):
                for axes, norms in zip(row, self.relative_gradients(model), strict=True):
                    axes.plot(range(1, len(norms) + 1), norms.clamp(min=LEAST), label=name)
                    axes.set_yscale("log")
        for row, when in zip(grid, ("before", "after"), strict=True):
            row[0].set_ylabel(f"gradient, {when} training")
            for layer, axes in enumerate(row):
                axes.set_title(f"layer {layer + 1}", fontsize="small")
                axes.grid(alpha=0.3)
        for axes in grid[1]:
            axes.set_xlabel("time step")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)

    def draw_bounds(self, figure):
        axes = figure.subplots()
        for gamma in sorted(self.bounded):
            self.bounded[gamma].plot(axes, label=f"gamma = {gamma:g}")
        axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()

    def draw_remembered(self, figure):
        before, after = self.before_and_after()[self.bounded[GAMMA].name]
        grid = figure.subplots(2, self.settings["layers"], sharey="row", squeeze=False)
        for when, model in ("before", before), ("after", after):
            for layer, memory, (above, below) in zip(
                range(1, 1 + len(grid[0])), read_memory(model), grid.T, strict=True
            ):
                above.hist(memory.u.tolist(), bins=30, alpha=0.5, label=f"{when} training")
                lives = memory.half_life.sort().values
                below.plot(lives[lives.isfinite()].tolist(), ".")
                above.set_title(f"layer {layer}", fontsize="small")
                above.set_xlabel("u")
                # That of the model after the training remains.
                below.set_title(f"in the end {memory.kept:.0%} forget nothing", fontsize="small")
                below.set(xlabel="neuron, sorted", yscale="symlog")
        grid[0, 0].set_ylabel("neurons")
        grid[1, 0].set_ylabel("half-life in steps")
        grid[0, 0].legend(fontsize="small")


class Layers(nn.Module):
    """Layers that are modules of their own, so that what each receives can be seen."""

    def __init__(self, kind, hidden, layers, length, gamma):
        super().__init__()
        self.layers, size = nn.ModuleList(), 2
        inits = models.long_memory_last("indrnn", layers, length, gamma)
        for init in inits:
            ours = {}
            if kind == "indrnn":
                bound = recurrent_max_for(length, gamma)
                ours = {"recurrent_max": bound, "recurrent_init": init}
                ours["grad_clip"] = Adding.gradient_clip
            self.layers.append(models.make(kind, size, hidden, 1, **ours))
            size = self.layers[-1].output_size
        self.head = nn.Linear(size, 1)

    def run(self, x):
        """The answers (B, 1), and the input of each layer."""
        received = []
        for layer in self.layers:
            received.append(x)
            x, _ = layer(x)
        return self.head(x[:, -1]), received

    def forward(self, x):
        return self.run(x)[0]


add_arguments, run = Memory.add_arguments, Memory.run
