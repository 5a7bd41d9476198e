"""A run of a task: its settings, its folder, and how it is stopped and resumed."""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch

from bench import arguments
from bench.arguments import UserError
from bench.environment import describe, keep_freed_memory, new_figure, write_figure, write_json
from bench.tasks import training

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None


@contextlib.contextmanager
def stop_requests():
    """Yields a list, empty until the first Ctrl-C; a second Ctrl-C ends the program at once."""
    requests = []

    def request(number, frame):
        requests.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)


def hold(folder, held):
    """Keeps other runs out of a folder until `held`, an ExitStack, is closed."""
    if fcntl is None or not folder.is_dir():
        return
    descriptor = os.open(folder, os.O_RDONLY)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another run") from None
    except OSError:
        return  # a file system without locks


def folder_of(args, name):
    """The folder for the results: that of the run to resume, or a new one, which is then held."""
    if args.resume is not None:
        return args.resume
    folder = args.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    hold(folder, args.held)
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"{folder} already holds a run; --resume {folder} goes on with it")
    return folder


class Task:
    """What `python -m bench` trains. Made with the settings of a run, an instance has

    name, title   for the folder, and for whoever reads what is printed
    learners      what is trained, before the first step
    """

    SETTINGS: ClassVar = {  # name: (default, type, help)
        "batch": (32, arguments.integer(1), "sequences per step"),
        "hidden": (128, arguments.integer(1), "neurons of a layer"),
        "lr": (2e-4, arguments.positive, "learning rate of Adam"),
        "seed": (0, arguments.integer(0), "of the initial weights, the data and dropout"),
        "device": (None, arguments.device, "where to train (default: cuda where there is one)"),
        "threads": (None, arguments.integer(1), "of PyTorch on the CPU (default: its own choice)"),
        "log-every": (100, arguments.integer(1), "steps between two lines"),
    }
    FLAGS: ClassVar = {}  # name: help
    MAY_CHANGE: ClassVar = {
        "threads",
        "log_every",
    }  # when a run is resumed: what decides no training

    def train(self, save, stop):
        """Trains the learners until they are done or `stop` is not empty; save() now and then."""
        raise NotImplementedError

    def facts(self):
        """What the report holds beside the settings and the machine."""
        raise NotImplementedError

    def draw(self, figure):
        """The curves."""
        raise NotImplementedError

    @classmethod
    def add_arguments(cls, parser):
        """Options that are in the parsed arguments only if they were given, --out and --resume."""
        for name, (default, parse, meaning) in cls.SETTINGS.items():
            shown = meaning if default is None else f"{meaning} (default: {default})"
            options = {"choices": parse} if isinstance(parse, tuple) else {"type": parse}
            parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=shown, **options)
        either = argparse.BooleanOptionalAction
        for name, meaning in cls.FLAGS.items():
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
        if args.resume is None:
            return merged | given, None
        hold(args.resume, args.held)
        checkpoint = training.load_checkpoint(args.resume / "checkpoint.pt", args.command)
        merged |= checkpoint["settings"]
        for name, value in given.items():
            if name not in cls.MAY_CHANGE and value != merged[name]:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: the run to resume has {merged[name]}")
        try:
            arguments.device(merged["device"])
        except argparse.ArgumentTypeError as error:
            raise UserError(f"the run to resume needs its device: {error}") from None
        return merged | given, checkpoint

    @classmethod
    def run(cls, args):
        """Trains, writes checkpoint.pt, report.json and curves.png, and returns the exit status."""
        settings, checkpoint = cls.merge(args)
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        job = cls(settings)
        folder = folder_of(args, job.name)
        if checkpoint:
            training.restore(job.learners, checkpoint)
        environment = describe(settings["device"])
        print(f"{job.title}; on {environment['device_name']}; results in {folder}")
        keep_freed_memory()

        def save():
            training.save_checkpoint(folder / "checkpoint.pt", args.command, settings, job.learners)
            # Not where the data lie: a job says which they are.
            shown = {name: value for name, value in settings.items() if name != "data"}
            about = {"task": args.command, "settings": shown, "environment": environment}
            write_json(folder / "report.json", about | {"window": training.WINDOW} | job.facts())

        with stop_requests() as stop:
            job.train(save, stop)
            save()
            if figure := new_figure(8, 4.5):
                figure.suptitle(job.title)
                job.draw(figure)
                write_figure(folder / "curves.png", figure, dpi=150)
        if stop:
            print(f"stopped; to go on: python -m bench {args.command} --resume {folder}")
            return 130
        diverged = [learner for learner in job.learners if learner.outcome == "diverged"]
        for learner in diverged:
            said = f"{learner.name}: the loss is not finite after {learner.step} steps"
            print(said, file=sys.stderr)
        print(f"curves.png, report.json and checkpoint.pt are in {folder}")
        return 1 if diverged else 0
