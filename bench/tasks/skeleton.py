"""Train networks to tell actions apart by how joints move: NTU RGB+D, or a stand-in for it.

--data names the folder with the .skeleton files of NTU RGB+D, which may be had on request from
https://rose1.ntu.edu.sg/dataset/actionRecognition: two persons of 25 joints, 60 actions. People
train and test as --split says, and the settings of the paper come with --full. A folder without
such files leaves BasicMotions, which sktime and aeon ship: 40 and 40 series of 100 time steps of a
watch with an accelerometer and a gyroscope, 4 actions. It is a stand-in, and is called one.

A sequence is cut into 20 parts of equal length, and the network reads one frame of each: a random
one in training, the middle one in evaluation. In training the whole sequence is turned, by a random
angle about the vertical axis and by one about the axis from left to right: all joints, or both
sensors of the watch, by the same two.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import ClassVar

import torch

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, ntu, series
from fastindrnn import recurrent_max_for

# Li et al. 2019, in %: (split, kind, layers).
PUBLISHED = {
    ("subject", "lstm", 2): 60.1,
    ("view", "lstm", 2): 67.3,
    ("subject", "indrnn", 4): 78.6,
    ("view", "indrnn", 4): 83.8,
    ("subject", "indrnn", 6): 81.8,
    ("view", "indrnn", 6): 88.0,
    ("subject", "dense", None): 84.9,
    ("view", "dense", None): 90.4,
}
STAND_IN = "BasicMotions"


class Skeleton(series.Classification):
    SETTINGS: ClassVar = series.Classification.SETTINGS | {
        "model": (["indrnn", "lstm", "gru"], *series.Classification.SETTINGS["model"][1:]),
        "split": ("subject", ("subject", "view"), "of NTU RGB+D: other people, or another camera"),
        "frames": (20, arguments.integer(1), "of a sequence that are read"),
        "turn": (20.0, arguments.at_least_zero, "degrees by which a sequence is turned, at most"),
        "parameters": (70_000, *series.Classification.SETTINGS["parameters"][1:]),
        "lr": (2e-3, *series.Classification.SETTINGS["lr"][1:]),
        "dropout": (0.3, *series.Classification.SETTINGS["dropout"][1:]),
    }
    # Li et al. 2019, arXiv 1910.06251.
    FULL: ClassVar = {
        **{"model": ["indrnn"], "layers": 6, "hidden": 512, "parameters": None, "batch": 128},
        **{"lr": 2e-4, "dropout": 0.4, "epochs": 300},
    }
    data_label = "as the title says"

    def load(self):
        settings, device = self.settings, self.settings["device"]
        folder = settings["data"] or os.environ.get(data.VARIABLE)
        settings["stand_in"] = not (folder and any(Path(folder).glob("*.skeleton")))
        if settings["stand_in"]:
            parts, source = self.load_stand_in(), STAND_IN
            self.title = f"Actions, {source} in place of NTU RGB+D"
        else:
            parts, source = ntu.load(Path(folder), settings["split"]), "NTU RGB+D"
            self.title = f"Actions, {source}, by {settings['split']}"
        if not all(parts.values()):
            raise UserError(f"{source}: no sequence to train on, or none to test")
        words = sorted({action for part in parts.values() for _, action in part})
        self.frames, self.lengths, self.starts, labels, hashes = {}, {}, {}, {}, {}
        scale = torch.cat([sequence for sequence, _ in parts["train"]]).square().mean().sqrt()
        for part, sequences in parts.items():
            frames = torch.cat([sequence for sequence, _ in sequences])
            lengths = torch.tensor([len(sequence) for sequence, _ in sequences], device=device)
            hashes[part] = hashlib.sha256(frames.numpy()).hexdigest()
            self.frames[part], self.lengths[part] = frames.div_(scale).to(device), lengths
            self.starts[part] = lengths.cumsum(0) - lengths
            actions = [words.index(action) for _, action in sequences]
            labels[part] = torch.tensor(actions, device=device)
        return labels, words, hashes

    def load_stand_in(self):
        """Two points with three coordinates: what the accelerometer and the gyroscope say."""
        parts = {}
        for part in ("train", "test"):
            name = f"{STAND_IN}_{part.upper()}.ts"
            sequences, actions, _ = series.load(data.find_shipped(self.settings, STAND_IN, name))
            points = [sequence.unflatten(1, (-1, 3)) for sequence in sequences]
            parts[part] = list(zip(points, actions, strict=True))
        return parts

    def inputs(self, part, chosen, generator):
        places = sample(self.lengths[part][chosen], self.settings["frames"], generator)
        points = self.frames[part][self.starts[part][chosen, None] + places]
        if generator is not None:
            limit = math.radians(self.settings["turn"])
            options = {"device": points.device, "generator": generator}
            angles = (2 * torch.rand(len(chosen), 2, **options) - 1) * limit
            points = turn(points, *angles.unbind(1))
        return (points.flatten(2),)

    def make_model(self, kind, hidden, layers):
        inputs, bound = self.frames["train"][0].numel(), recurrent_max_for(self.settings["frames"])
        return series.Classifier(
            kind, inputs, hidden, layers, len(self.words), self.settings, recurrent_max=bound
        )

    @classmethod
    def published(cls, settings, kind):
        layers = None if kind == "dense" else settings["layers"]
        value = PUBLISHED.get((settings["split"], kind, layers))
        is_same = settings["full"] and not settings["stand_in"] and value
        return {"accuracy, test": f"{value} %"} if is_same else {}


def sample(lengths, count, generator=None):
    """Places (B, count) of frames, one in each of `count` parts of a sequence: a random one, or
    without a generator the middle one. Short sequences have frames that are taken twice."""
    first = torch.arange(count, device=lengths.device)
    within = torch.full((len(lengths), count), 0.5, device=lengths.device)
    if generator is not None:
        within = torch.rand(within.shape, device=lengths.device, generator=generator)
    places = ((first + within) / count * lengths[:, None]).long()
    return places.minimum(lengths[:, None] - 1)  # a product of floats may be rounded up


def turn(points, about_y, about_x):
    """Points (B, T, points, 3), those of each sequence turned by two angles (B,), in radians:
    about the vertical axis, y, and then about x."""
    one, zero = torch.ones_like(about_y), torch.zeros_like(about_y)
    cos, sin = about_y.cos(), about_y.sin()
    first = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], 1)
    cos, sin = about_x.cos(), about_x.sin()
    second = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1)
    matrix = second.unflatten(1, (3, 3)) @ first.unflatten(1, (3, 3))
    return torch.einsum("bij,btpj->btpi", matrix, points)


add_arguments, run = Skeleton.add_arguments, Skeleton.run
