"""Where the data of a task lie, and in which order they are trained on."""

import importlib.util
import os
from pathlib import Path

import torch

from bench.arguments import UserError

VARIABLE = "FASTINDRNN_DATA"
PACKAGES = "sktime", "aeon"  # which ship small sets of data
SETTING = (None, Path, f"folder with the files (default: the variable {VARIABLE})")


def find(settings, name, source):
    """The path of a file of the folder; a UserError says what is missing, and where to get it."""
    folder = settings["data"] or os.environ.get(VARIABLE)
    if not folder:
        raise UserError(
            f"--data DIR, or the variable {VARIABLE}, must name the folder with {name}: {source}"
        )
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"there is no file {path}: {source}")
    return path


def find_shipped(settings, group, name):
    """The path of a file of the folder, or of the one that sktime or aeon ships in its group. The
    package is not imported, so that none of what it needs has to be installed."""
    folder = settings["data"] or os.environ.get(VARIABLE)
    places = [Path(folder)] if folder else []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        roots = spec.submodule_search_locations if spec else []
        places += [Path(root) / "datasets" / "data" / group for root in roots]
    paths = [place / name for place in places]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(
        f"there is no {name}: pip install sktime, which ships it, or put it into a folder that "
        f"--data DIR, or the variable {VARIABLE}, names"
    )


def generator(settings, step=0):
    """Of the data of one step, on the device: those of each step are the same in every run."""
    return torch.Generator(settings["device"]).manual_seed(settings["seed"] * 1_000_003 + step)


class Shuffled:
    """Called with a step, the indices of its examples: every epoch in an order of its own, which
    depends on seed and epoch alone, so that a resumed run finds its place.

    lengths  of the examples, a tensor: the sequences of a step are then of similar length, so that
             there is little padding; which ones meet in a step changes from epoch to epoch
    steps    of an epoch
    """

    def __init__(self, count, settings, lengths=None):
        self.count, self.settings, self.lengths, self.epoch = count, settings, lengths, None
        self.steps = -(-count // settings["batch"])

    def __call__(self, step):
        epoch, place = divmod(step, self.steps)
        if epoch != self.epoch:
            self.epoch, self.parts = epoch, self.make_parts(epoch)
        return self.parts[place]

    def make_parts(self, epoch):
        device, batch = self.settings["device"], self.settings["batch"]
        options = {"device": device, "generator": generator(self.settings, epoch)}
        order = torch.randperm(self.count, **options)
        if self.lengths is None:
            return order.split(batch)
        # Each length seems up to a fifth longer than it is, or the same would always meet.
        seeming = self.lengths.to(device) * (1 + 0.2 * torch.rand(self.count, **options))
        parts = seeming.argsort(stable=True).split(batch)
        return [parts[place] for place in torch.randperm(len(parts), **options).tolist()]
