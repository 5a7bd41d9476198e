"""Train an IndRNN on MNIST read pixel by pixel, in order or permuted.

784 steps of one pixel each, then the digit. The settings are those of the authors' PyTorch code
(Li et al. 2019, arXiv 1910.06251): pixels in [-1, 1); Adam with weight decay on matrices alone;
gradients of parameters clipped elementwise; |u| <= gamma^(1/T); norm after the nonlinearity;
dropout with one mask over time after every recurrence. Three things differ: the learning rate is
constant (theirs falls on a plateau, which takes dozens of epochs), the scales of norms do not
decay, and an epoch has all of its batches (theirs 1,700 of 1,782). Validation is on the last
twentieth of the training file, 3,000 images; training on the 57,000 before them.
"""

import copy
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.arguments import UserError
from bench.tasks import idx, mnist_model, training
from bench.tasks.run import Task

EVALUATION_BATCH = 250
SETTLING = 50  # batches
LAYERS = {"plain": 6, "residual": 5, "dense": 18}
# Of the authors' code: parameters, and validation accuracy in % after some epochs of their logs.
PUBLISHED_PARAMETERS = {
    ("plain", 6): 86_410,
    ("plain", 12): 187_786,
    ("residual", 5): 170_890,
    ("dense", 18): 256_514,
}
EPOCHS = (1, 2, 5, 10, 20, 50)
LOGS = {  # (model, layers, permuted)
    ("plain", 6, False): (77.7, 85.1, 94.0, 96.2, 97.4, 98.3),
    ("plain", 12, False): (83.4, 88.7, 70.2, 97.7, 97.8, 99.1),
    ("residual", 5, False): (89.2, 95.6, 97.0, 98.0, 98.1, 98.8),
    ("dense", 18, False): (88.2, 94.1, 95.5, 98.1, 98.3, 99.4),
    ("plain", 6, True): (63.1, 70.0, 66.0, 41.9, 78.2, 85.3),
    ("residual", 5, True): (69.9, 77.2, 86.6, 89.0, 92.9, 94.5),
}


class Mnist(Task):
    SETTINGS: ClassVar = Task.SETTINGS | {
        "data": (None, Path, f"folder with the four files (default: the variable {idx.VARIABLE})"),
        "model": (
            "plain",
            ("plain", "residual", "dense"),
            "stack; dense: a growth of --hidden / 8",
        ),
        "layers": (None, arguments.integer(1), "plain: recurrences, 6; residual: blocks of two, 5"),
        "epochs": (2, arguments.integer(1), "passes through the training images"),
        "permutation-seed": (0, arguments.integer(0), "of the order of pixels with --permuted"),
        "dropout": (0.1, arguments.probability, "after each recurrence"),
        "gamma": (5.0, arguments.growth, "growth of a state over all steps at most"),
        "limit-train": (None, arguments.integer(1), "train on the first so many images only"),
    }
    FLAGS: ClassVar = {"permuted": "the pixels in one random order, the same for all images"}
    MAY_CHANGE: ClassVar = Task.MAY_CHANGE | {"data", "epochs"}

    def __init__(self, settings):
        complete(settings)
        self.settings, self.test = settings, None
        self.data, hashes = load_data(settings)
        if settings.setdefault("hashes", hashes) != hashes:
            reason = "holds other images than the run to resume has seen"
            raise UserError(f"{settings['data']} {reason}")
        images, _ = self.data["train"]
        self.steps_of_epoch = math.ceil(len(images) / settings["batch"])
        self.learner = mnist_model.make_learner(settings, images.shape[1])
        self.learners = [self.learner]
        kind = "permuted" if settings["permuted"] else "sequential"
        self.name = f"mnist-{settings['model']}{settings['layers']}-{kind}"
        self.title = f"{kind} MNIST, {self.learner.name}, {parameters_line(settings, self.learner)}"

    def train(self, save, stop):
        while len(self.learner.validations) < self.settings["epochs"]:
            self.train_epoch(save, stop)
            if stop or self.learner.outcome == "diverged":
                return
            self.validate()
            save()
        self.test = evaluate(self.learner.model, *self.data["test"])
        print(f"test, last weights: {100 * self.test['accuracy']:.2f} %")

    def train_epoch(self, save, stop):
        """The rest of the epoch in which the learner is."""
        images, labels = self.data["train"]
        settings, learner, epoch = self.settings, self.learner, len(self.learner.validations)
        # The order depends on seed and epoch alone, so that a resumed run finds its place in it.
        learner.generator.manual_seed(settings["seed"] * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=learner.generator).to(images.device)
        done = learner.step - epoch * self.steps_of_epoch
        rest = iter(order.split(settings["batch"])[done:])

        def loss_of_step(model, generator):
            chosen = next(rest)
            answers = labels[chosen]
            logits = model(pixels(images[chosen]))
            right = (logits.argmax(1) == answers).float().mean()
            return {"loss": nn.functional.cross_entropy(logits, answers), "accuracy": right}

        learner.model.train()
        training.train(
            learner,
            loss_of_step,
            steps=(epoch + 1) * self.steps_of_epoch,
            learning_rate=lambda step: settings["lr"],
            log_every=settings["log_every"],
            save=save,
            stop=stop,
        )

    def validate(self):
        """Adds a line to the learner's validations, and prints it beside the authors' log."""
        learner, epoch = self.learner, len(self.learner.validations) + 1
        result = evaluate(learner.model, *self.data["validation"])
        settled = with_settled_norms(learner.model, self.data["train"][0], self.settings["batch"])
        result["settled_accuracy"] = evaluate(settled, *self.data["validation"])["accuracy"]
        log = authors_log(self.settings).get(epoch)
        learner.validations.append({"epoch": epoch, "step": learner.step, **result, "authors": log})
        beside = "" if log is None else f" (the authors' log: {log:.1f} %)"
        print(
            f"epoch {epoch}: validation {100 * result['accuracy']:.2f} %{beside}; with the norms' "
            f"statistics computed anew {100 * result['settled_accuracy']:.2f} %; loss "
            f"{result['loss']:.4f}, {learner.seconds / epoch:.0f} s per epoch"
        )

    def facts(self):
        return {
            "fixed": mnist_model.FIXED,
            "images": {part: len(labels) for part, (_, labels) in self.data.items()},
            "model": self.learner.name,
            **self.learner.result(),
            "test": self.test,
        }

    def draw(self, figure):
        """Training loss, and accuracy beside the authors' log, against epochs."""
        losses, accuracies = figure.subplots(1, 2)
        self.learner.plot(losses, self.steps_of_epoch)
        shown = {line["epoch"]: 100 * line["accuracy"] for line in self.learner.validations}
        log = authors_log(self.settings)
        log = {epoch: value for epoch, value in log.items() if epoch <= len(shown)}
        for label, points in (("validation", shown), ("authors' log", log)):
            accuracies.plot(list(points), list(points.values()), marker="o", label=label)
        accuracies.set(ylabel="validation accuracy, %")
        accuracies.legend()
        for axes in (losses, accuracies):
            axes.set(xlabel="epoch")
            axes.grid(alpha=0.3)


def complete(settings):
    """Fills in what depends on the model, and refuses what it does not have."""
    if settings["model"] == "dense" and settings["layers"] not in (None, LAYERS["dense"]):
        raise UserError("--layers: the dense model has blocks of 8, 6 and 4, always")
    if settings["model"] == "dense" and settings["hidden"] % 8:
        raise UserError(f"--hidden {settings['hidden']}: must be a multiple of 8 with dense")
    settings["layers"] = settings["layers"] or LAYERS[settings["model"]]
    settings["data"] = settings["data"] and str(Path(settings["data"]).resolve())


def parameters_line(settings, learner):
    """The count of parameters, and that it is the published one where there is one."""
    published = PUBLISHED_PARAMETERS.get((settings["model"], settings["layers"]))
    if settings["hidden"] != 128 or published is None:
        return f"{learner.parameters:,} parameters"
    assert learner.parameters == published, f"{learner.parameters:,} parameters, not {published:,}"
    return f"{learner.parameters:,} parameters as published"


def authors_log(settings):
    """{epoch: validation accuracy in %} of the published run that this one repeats; or empty."""
    key = settings["model"], settings["layers"], settings["permuted"]
    if settings["hidden"] != 128 or settings["limit_train"] or key not in LOGS:
        return {}
    return dict(zip(EPOCHS, LOGS[key], strict=True))


def load_data(settings):
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
    data = {
        "train": (images[:limit], labels[:limit]),
        "validation": (images[-held_out:], labels[-held_out:]),
        "test": sets["t10k"],
    }
    device = settings["device"]
    return {
        part: tuple(tensor.to(device) for tensor in pair) for part, pair in data.items()
    }, hashes


def pixels(images):
    """Bytes to [-1, 1)."""
    return images.float().div_(128).sub_(1)


@torch.no_grad()
def evaluate(model, images, labels):
    """Accuracy and mean loss, with running statistics and without dropout."""
    model.eval()
    loss = right = 0.0
    for some, answers in zip(
        images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
    ):
        logits = model(pixels(some))
        loss += nn.functional.cross_entropy(logits, answers, reduction="sum").item()
        right += (logits.argmax(1) == answers).sum().item()
    return {
        "images": len(labels),
        "accuracy": right / len(labels),
        "loss": training.finite(loss / len(labels)),
    }


@torch.no_grad()
def with_settled_norms(model, images, batch):
    """A copy whose batch norms have the statistics of SETTLING batches at the weights as they are.

    The running ones lag behind weights that move: a change of 0.002 in u, ten steps of Adam,
    changes u^784 nearly five-fold.
    """
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
