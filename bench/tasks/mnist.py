"""Train an IndRNN on MNIST read pixel by pixel, in order or permuted.

784 steps of one pixel each, then the digit. The settings are those of the authors' PyTorch code
(Li et al. 2019, arXiv 1910.06251): pixels in [-1, 1); Adam with weight decay on matrices alone;
gradients of parameters clipped elementwise; |u| <= gamma^(1/T); norm after the nonlinearity;
dropout with one mask over time after every recurrence. Three things differ: the learning rate is
constant (theirs falls on a plateau, which takes dozens of epochs), the scales of norms do not
decay, and an epoch has all of its batches (theirs 1,700 of 1,782). Validation is on the last
twentieth of the training file, 3,000 images; training on the 57,000 before them.

The figure is the accuracy with batch norm's statistics taken anew at the weights as they are. The
running ones lag behind weights that move: a change of 0.002 in u, ten steps of Adam, changes u^784
nearly five-fold. Beside it stands the accuracy with them.
"""

import copy
from typing import ClassVar

import torch
from einops import rearrange
from torch import nn

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, idx, models
from bench.tasks.run import BY_EPOCHS, Task
from bench.tasks.training import finite
from fastindrnn import recurrent_max_for

CLASSES = 10
INPUT_SLOPE = 8  # of kaiming_uniform_: weights of U(-b, b) with b^2 = 6 / (65 * inputs)
EVALUATION_BATCH = 250
SETTLING = 50  # batches
LAYERS = {"indrnn": 6, "residual": 5, "dense": None}  # the dense has blocks of 8, 6 and 4
# Of the authors' code: parameters, and validation accuracy in % after some epochs of their logs.
PUBLISHED_PARAMETERS = {
    ("indrnn", 6): 86_410,
    ("indrnn", 12): 187_786,
    ("residual", 5): 170_890,
    ("dense", None): 256_514,
}
NAMES = "accuracy, running norms", "accuracy"
EPOCHS = (1, 2, 5, 10, 20, 50)
LOGS = {  # (model, layers, permuted)
    ("indrnn", 6, False): (77.7, 85.1, 94.0, 96.2, 97.4, 98.3),
    ("indrnn", 12, False): (83.4, 88.7, 70.2, 97.7, 97.8, 99.1),
    ("residual", 5, False): (89.2, 95.6, 97.0, 98.0, 98.1, 98.8),
    ("dense", None, False): (88.2, 94.1, 95.5, 98.1, 98.3, 99.4),
    ("indrnn", 6, True): (63.1, 70.0, 66.0, 41.9, 78.2, 85.3),
    ("residual", 5, True): (69.9, 77.2, 86.6, 89.0, 92.9, 94.5),
}


class Mnist(Task):
    shown, form = "accuracy", "{:.1%}"
    SETTINGS: ClassVar = BY_EPOCHS | {
        "data": data.SETTING,
        "layers": (None, arguments.integer(1), "recurrent layers, 6; residual: blocks of two, 5"),
        "epochs": (2, *BY_EPOCHS["epochs"][1:]),
        "weight-decay": (1e-4, arguments.at_least_zero, "of matrices"),
        "dropout": (0.1, arguments.probability, "after each recurrence, one mask for all steps"),
        "gamma": (5.0, arguments.growth, "growth of a state over all steps at most"),
        "permutation-seed": (0, arguments.integer(0), "of the order of pixels with --permuted"),
        "limit-train": (None, arguments.integer(1), "train on the first so many images only"),
    }
    FLAGS: ClassVar = Task.FLAGS | {
        "permuted": "the pixels in one random order, the same for all images"
    }
    FULL: ClassVar = {"epochs": 300}
    MAY_CHANGE: ClassVar = Task.MAY_CHANGE | {"epochs"}

    def prepare(self):
        settings = self.settings
        self.images, hashes = load_images(settings)
        if settings.setdefault("hashes", hashes) != hashes:
            reason = "holds other images than the run to resume has seen"
            raise UserError(f"{settings['data']} {reason}")
        self.pixels = self.images["train"][0].shape[1]
        self.shuffled = data.Shuffled(len(self.images["train"][0]), settings)
        settings["steps"] = settings["epochs"] * self.shuffled.steps
        settings["evaluate_every"] = self.shuffled.steps
        self.title = f"{'permuted' if settings['permuted'] else 'sequential'} MNIST"

    def layers_of(self, kind):
        return layers_of(self.settings, kind)

    def make_model(self, kind, hidden, layers):
        return Network(kind, hidden, layers, self.pixels, self.settings)

    def loss_of_step(self, learner, step):
        chosen = self.shuffled(step)
        images, labels = (part[chosen] for part in self.images["train"])
        logits = learner.model(pixels(images))
        right = (logits.argmax(1) == labels).float().mean()
        return {"loss": nn.functional.cross_entropy(logits, labels), "accuracy": right}

    def evaluate(self, model):
        return self.scores(model, "validation")

    def scores(self, model, part):
        running = score(model, *self.images[part])
        if not any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()):
            return running
        settled = with_settled_norms(model, self.images["train"][0], self.settings["batch"])
        found = score(settled, *self.images[part])
        return found | {f"{name}, running norms": value for name, value in running.items()}

    def finish(self, model):
        return {"test": self.scores(model, "test")}

    def facts(self):
        images = {part: len(labels) for part, (_, labels) in self.images.items()}
        return super().facts() | {"images": images}

    @classmethod
    def measured(cls, settings, result):
        """At the epochs of the authors' logs, at the last one, and on the test images."""
        lines, shown = enumerate(result["validations"], 1), {*EPOCHS, len(result["validations"])}
        last = f"test, epoch {len(result['validations'])}"
        parts = {last: result["test"]} if "test" in result else {}
        parts |= {f"epoch {epoch}": line for epoch, line in lines if epoch in shown}
        return {f"{name}, {part}": line.get(name) for name in NAMES for part, line in parts.items()}

    @classmethod
    def published(cls, settings, kind):
        log = authors_log(settings, kind)
        return {f"{name}, epoch {n}": f"{value}%" for name in NAMES for n, value in log.items()}

    def draw_curves(self, figure):
        """Beside the authors' logs."""
        super().draw_curves(figure)
        if len(figure.axes) < 2:
            return
        for learner, kind in zip(self.learners, self.settings["model"], strict=True):
            seconds = [line["seconds"] for line in learner.validations]
            log = authors_log(self.settings, kind)
            shown = [epoch for epoch in log if epoch <= len(seconds)]
            if shown:
                times = [seconds[epoch - 1] for epoch in shown]
                values = [log[epoch] / 100 for epoch in shown]
                figure.axes[1].plot(times, values, "x", label=f"{kind}: the authors' log, by epoch")
        figure.axes[1].legend()


def layers_of(settings, kind):
    return settings["layers"] or LAYERS.get(kind, 1)


def authors_log(settings, kind):
    """{epoch: validation accuracy in %} of the published run that this one repeats, if any."""
    key = kind, layers_of(settings, kind), settings["permuted"]
    if settings["hidden"] != 128 or settings["limit_train"] or key not in LOGS:
        return {}
    return dict(zip(EPOCHS, LOGS[key], strict=True))


class Network(nn.Module):
    """A stack read out at its last step; images (B, T) to logits (B, classes)."""

    def __init__(self, kind, hidden, layers, length, settings):
        super().__init__()
        gamma, ours = settings["gamma"], {}
        if kind in models.OURS:
            ours = {
                "norm": "batch",
                "recurrent_max": recurrent_max_for(length, gamma),
                "recurrent_init": models.long_memory_last(kind, layers, length, gamma),
            }
        self.stack = models.make(kind, 1, hidden, layers, dropout=settings["dropout"], **ours)
        # The residual and the dense stack have dropout behind their last recurrence.
        self.dropout = 0.0 if kind in ("residual", "dense") else settings["dropout"]
        self.head = nn.Linear(self.stack.output_size, CLASSES)
        for parameter in self.stack.parameters() if ours else ():
            if parameter.dim() == 2:
                nn.init.kaiming_uniform_(parameter, a=INPUT_SLOPE)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        output, _ = self.stack(rearrange(images, "b t -> b t 1"))
        # A mask over time, seen at one step, is a mask; the other stacks have it inside.
        return self.head(nn.functional.dropout(output[:, -1], self.dropout, self.training))


def load_images(settings):
    """{"train", "validation", "test": (images as bytes, pixels in the order of reading; labels)},
    and the hashes of the files."""
    sets, hashes = idx.load(settings["data"])
    images, labels = sets["train"]
    if settings["permuted"]:
        generator = torch.Generator().manual_seed(settings["permutation_seed"])
        order = torch.randperm(images.shape[1], generator=generator)
        images, sets["t10k"] = images[:, order], (sets["t10k"][0][:, order], sets["t10k"][1])
    held_out = len(images) // 20
    if held_out == 0:
        raise UserError(f"{len(images)} training images are too few: a twentieth is to validate on")
    limit = min(settings["limit_train"] or len(images), len(images) - held_out)
    parts = {
        "train": (images[:limit], labels[:limit]),
        "validation": (images[-held_out:], labels[-held_out:]),
        "test": sets["t10k"],
    }
    device = settings["device"]
    return {
        part: tuple(tensor.to(device) for tensor in pair) for part, pair in parts.items()
    }, hashes


def pixels(images):
    """Bytes to [-1, 1)."""
    return images.float().div_(128).sub_(1)


def score(model, images, labels):
    """Accuracy and mean loss of a model in evaluation."""
    loss = right = 0.0
    for some, answers in zip(
        images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
    ):
        logits = model(pixels(some))
        loss += nn.functional.cross_entropy(logits, answers, reduction="sum").item()
        right += (logits.argmax(1) == answers).sum().item()
    return {"accuracy": right / len(labels), "loss": finite(loss / len(labels))}


def with_settled_norms(model, images, batch):
    """A copy in evaluation, whose batch norms have the statistics of SETTLING batches."""
    model = copy.deepcopy(model).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
    for some in images.split(batch)[:SETTLING]:
        model(pixels(some))
    return model


add_arguments, run = Mnist.add_arguments, Mnist.run
