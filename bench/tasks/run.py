"""A task: what is trained and measured, and a run of it."""

import argparse
import math
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.arguments import UserError
from bench.environment import describe, keep_freed_memory, new_figure, write_figure, write_json
from bench.tasks import checkpoint
from bench.tasks.folder import folder_of, hold, stop_requests
from bench.tasks.models import KINDS, hidden_for
from bench.tasks.training import WINDOW, Learner, Schedule, train
from fastindrnn import Stack, constrain_, constrain_after_step, parameter_groups


class Task:
    """What `python -m bench` trains: the networks that --model names, one after the other, each
    from the same seed and on the same data in the same order.

    A task gives `prepare`, `make_model`, `loss_of_step` and `evaluate`, and may change the rest.
    """

    title = ""  # for whoever reads what is printed
    shown = ""  # the figure of `evaluate` that is drawn
    form = "{:.3f}"  # of figures, in tables
    data_label = "as in the papers"  # or what stands in for those
    SETTINGS: ClassVar = {  # name: (default, type, help)
        "model": (["indrnn"], arguments.several(KINDS), f"some of {', '.join(KINDS)}"),
        "layers": (2, arguments.integer(1), "recurrent layers; residual: blocks of two"),
        "hidden": (128, arguments.integer(1), "neurons of a layer; dense: 8 times the growth"),
        "parameters": (None, arguments.integer(1), "of each network, by its hidden size"),
        "batch": (32, arguments.integer(1), "sequences per step"),
        "steps": (1000, arguments.integer(1), "training steps at most"),
        "seconds": (None, arguments.positive, "of training each network, at most"),
        "evaluate-every": (
            None,
            arguments.integer(1),
            "steps between evaluations, if not at the end alone",
        ),
        "lr": (2e-4, arguments.positive, "learning rate of Adam"),
        "weight-decay": (0.0, arguments.at_least_zero, "of matrices"),
        "dropout": (0.0, arguments.probability, "after each recurrence, one mask for all steps"),
        "seed": (0, arguments.integer(0), "of the initial weights, the data and dropout"),
        "device": (None, arguments.device, "where to train (default: cuda where there is one)"),
        "threads": (None, arguments.integer(1), "of PyTorch on the CPU (default: its own choice)"),
        "log-every": (100, arguments.integer(1), "steps between two lines"),
    }
    FLAGS: ClassVar = {"full": "what the paper sets, for a GPU; what is given here stays"}
    FULL: ClassVar = {}  # settings
    # When a run is resumed. With --steps and --seconds a rate that falls does so from there on.
    MAY_CHANGE: ClassVar = {"threads", "log_every", "steps", "seconds", "data"}
    gradient_clip = 10.0  # of each element, before each step of the optimiser
    gradient_norm: ClassVar = None  # to which all gradients together are clipped, in place of that
    rate_falls = False  # linearly to 0, over --steps or --seconds

    def __init__(self, settings):
        self.settings = settings
        self.prepare()
        self.learners = [self.make_learner(kind) for kind in settings["model"]]

    def prepare(self):
        """Reads the data, and refuses settings that do not fit."""

    def layers_of(self, kind):
        return self.settings["layers"]

    def make_model(self, kind, hidden, layers):
        """The whole network, with its head."""
        raise NotImplementedError

    def loss_of_step(self, learner, step):
        """{"loss": a scalar, and what else is to be recorded}; the data depend on `step` alone."""
        raise NotImplementedError

    def evaluate(self, model):
        """{figure: number}, on data that are not trained on."""
        return {}

    def finish(self, model):
        """What is to be in the report when the training has ended: {"test": figures, ...}."""
        return {}

    def first_rate(self, kind):
        """The learning rate with which a network starts."""
        return self.settings["lr"]

    def learning_rate(self, learner, step):
        falls = self.share_done(learner, step) if self.rate_falls else 0.0
        return learner.optimizer.defaults["lr"] * (1 - falls)

    def share_done(self, learner, step):
        """How much of the training is behind a learner, from 0 to 1: by --steps or by --seconds,
        whichever is more."""
        seconds = self.settings["seconds"] or math.inf
        return min(max(step / self.settings["steps"], learner.seconds / seconds), 1.0)

    def make_learner(self, kind):
        settings = self.settings
        layers = None if kind == "dense" else self.layers_of(kind)
        make, hidden = partial(self.make_model, kind, layers=layers), settings["hidden"]
        if settings["parameters"]:
            hidden = hidden_for(settings["parameters"], make)
        torch.manual_seed(settings["seed"])
        model = make(hidden).to(settings["device"])
        groups = parameter_groups(model, settings["weight_decay"])
        optimizer = torch.optim.Adam(groups, lr=self.first_rate(kind), fused=True)
        self.clip_gradients(kind, model, optimizer)
        if any(isinstance(part, Stack) for part in model.modules()):
            constrain_(model)
            constrain_after_step(optimizer, model)
        depth = "" if layers is None else f"{layers} x "
        return Learner(f"{kind} {depth}{hidden}", model, optimizer)

    def clip_gradients(self, kind, model, optimizer):
        def clip(*_):
            if self.gradient_norm is None:
                nn.utils.clip_grad_value_(model.parameters(), self.gradient_clip)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), self.gradient_norm)

        optimizer.register_step_pre_hook(clip)

    def schedule(self, learner):
        names = "steps", "evaluate_every", "log_every"
        seconds = self.settings["seconds"] or math.inf
        return Schedule(**{name: self.settings[name] for name in names}, seconds=seconds)

    def train(self, save, stop):
        """Trains the learners until they are done or `stop` is not empty; save() now and then."""
        for learner in self.learners:
            if learner.step == 0:
                torch.manual_seed(self.settings["seed"])
            train(learner, self, self.schedule(learner), save, stop)
            if stop:
                break
            print(f"{learner.name}: {learner.summary()}")
            save()

    def facts(self):
        """What the report holds beside the settings and the machine."""
        found = {each.name: each.result(self.schedule(each).target) for each in self.learners}
        return {"models": found}

    @classmethod
    def measured(cls, settings, result):
        """{figure: number or None} of a network, for the table; the last one stands for all."""
        lines = result["validations"]
        found = {f"{cls.shown}, validation": lines[-1][cls.shown] if lines else None}
        if "test" in result:
            found[f"{cls.shown}, test"] = result["test"][cls.shown]
        return found

    @classmethod
    def published(cls, settings, kind):
        """{figure: text} beside what was measured, where somebody has published it."""
        return {}

    @classmethod
    def overview(cls, reports):
        """{name of a plot: (what one sees, function that draws it on a figure)} of all runs of this
        task, for the page of results."""
        return {}

    def plots(self):
        """{name of a file: function that draws on a figure}."""
        return {"curves": self.draw_curves}

    def draw_curves(self, figure):
        """The training loss against steps, and the figure that is shown against seconds."""
        has_figures = any(len(learner.validations) > 1 for learner in self.learners)
        panels = figure.subplots(1, 1 + has_figures, squeeze=False)[0]
        for learner in self.learners:
            learner.plot(panels[0])
            if has_figures:
                seconds = [line["seconds"] for line in learner.validations]
                found = [line[self.shown] for line in learner.validations]
                panels[1].plot(seconds, found, marker=".", label=learner.name)
                panels[1].set(xlabel="seconds of training", ylabel=self.shown)
        label = f"training loss, mean of {WINDOW} steps"
        panels[0].set(xlabel="step", ylabel=label, yscale="log")
        for axes in panels:
            axes.grid(alpha=0.3)
            axes.legend()

    @classmethod
    def add_arguments(cls, parser):
        """Options that are in the parsed arguments only if they were given, --out and --resume."""
        for name, (default, parse, meaning) in cls.SETTINGS.items():
            named = ",".join(default) if isinstance(default, list) else default
            shown = meaning if default is None else f"{meaning} (default: {named})"
            options = {"choices": parse} if isinstance(parse, tuple) else {"type": parse}
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=shown, **options)
        either = argparse.BooleanOptionalAction
        flags = {name: text for name, text in cls.FLAGS.items() if name != "full" or cls.FULL}
        for name, meaning in flags.items():
            parser.add_argument(f"--{name}", action=either, default=argparse.SUPPRESS, help=meaning)
        results = parser.add_mutually_exclusive_group()
        results.add_argument("--out", type=Path, metavar="DIR", help="folder to write into")
        results.add_argument("--resume", type=Path, metavar="DIR", help="go on with a stopped run")

    @classmethod
    def merge(cls, args):
        """(Settings, checkpoint): the defaults, under those of the resumed run, under those given.
        The checkpoint is None if no run is resumed; otherwise its folder is held."""
        defaults = {name: default for name, (default, _, _) in cls.SETTINGS.items()}
        defaults |= dict.fromkeys(cls.FLAGS, False)
        merged = {name.replace("-", "_"): default for name, default in defaults.items()}
        merged["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        given = {name: value for name, value in vars(args).items() if name in merged}
        if given.get("data"):
            given["data"] = str(given["data"].resolve())
        if args.resume is None:
            return merged | (cls.FULL if given.get("full") else {}) | given, None
        hold(args.resume, args.held)
        found = checkpoint.load(args.resume / "checkpoint.pt", args.command)
        merged |= found["settings"]
        for name, value in given.items():
            if name not in cls.MAY_CHANGE and value != merged[name]:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: the run to resume has {merged[name]}")
        try:
            arguments.device(merged["device"])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"the run to resume needs its device: {error}") from None
        return merged | given, found

    @classmethod
    def run(cls, args):
        """Trains, writes checkpoint.pt, report.json and plots, and returns the exit status."""
        settings, begun = cls.merge(args)
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        task = cls(settings)
        folder = folder_of(args)
        if begun:
            checkpoint.restore(task.learners, begun)
        environment = describe(settings["device"])
        print(f"{task.title}; on {environment['device_name']}; results in {folder}")
        keep_freed_memory()

        def save():
            checkpoint.save(folder / "checkpoint.pt", args.command, settings, task.learners)
            # Not where the data lie: a task says which they are.
            shown = {name: value for name, value in settings.items() if name != "data"}
            about = {"task": args.command, "title": task.title, "settings": shown}
            about["environment"] = environment
            write_json(folder / "report.json", about | {"window": WINDOW} | task.facts())

        with stop_requests() as stop:
            task.train(save, stop)
            save()
            for name, draw in task.plots().items():
                if figure := new_figure(8, 4.5):
                    figure.suptitle(task.title)
                    draw(figure)
                    write_figure(folder / f"{name}.png", figure, dpi=150)
        if stop:
            print(f"stopped; to go on: python -m bench {args.command} --resume {folder}")
            return 130
        diverged = [learner for learner in task.learners if learner.outcome == "diverged"]
        for learner in diverged:
            said = f"{learner.name}: the loss is not finite after {learner.step} steps"
            print(said, file=sys.stderr)
        print(f"report.json, checkpoint.pt and plots are in {folder}")
        return 1 if diverged else 0


# Of a task that counts epochs: its `prepare` sets "steps" and "evaluate_every" from them.
BY_EPOCHS = {
    name: v for name, v in Task.SETTINGS.items() if name not in ("steps", "evaluate-every")
}
BY_EPOCHS["epochs"] = (100, arguments.integer(1), "passes through the training data")
