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
import sys
from pathlib import Path

import torch
from torch import nn

from bench import arguments
from bench.arguments import UserError
from bench.environment import describe, new_figure, write_figure, write_json
from bench.tasks import idx, mnist_model, training
from bench.tasks import settings as shared

EVALUATION_BATCH = 250
SETTLING = 50  # batches


SETTINGS = {  # name: (default, type, help)
    "data": (None, Path, f"folder with the four idx files (default: the variable {idx.VARIABLE})"),
    "model": ("plain", ("plain", "residual", "dense"), "stack"),
    "layers": (None, arguments.integer(1), "plain: recurrences, 6; residual: blocks of two, 5"),
    "hidden": (128, arguments.integer(1), "neurons of a layer; dense: 8 times the growth"),
    "epochs": (2, arguments.integer(1), "passes through the training images"),
    "batch": (32, arguments.integer(1), "images per step"),
    "seed": (0, arguments.integer(0), "of the initial weights, the order of images and dropout"),
    "permutation-seed": (0, arguments.integer(0), "of the order of pixels with --permuted"),
    "lr": (2e-4, arguments.positive, "learning rate of Adam, constant"),
    "dropout": (0.1, arguments.probability, "after each recurrence"),
    "gamma": (5.0, arguments.growth, "growth of a state over all steps at most"),
    "device": (None, arguments.device, "where to train (default: cuda if there is one, else cpu)"),
    "threads": (None, arguments.integer(1), "of PyTorch on the CPU (default: its own choice)"),
    "limit-train": (None, arguments.integer(1), "train on the first so many images only"),
    "log-every": (100, arguments.integer(1), "steps between two lines"),
}
FLAGS = {"permuted": "the pixels in one random order, the same for all images"}
MAY_CHANGE = {"data", "epochs", "threads", "log_every"}
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


def add_arguments(parser):
    shared.add_arguments(parser, SETTINGS, FLAGS)


def run(args):
    settings, checkpoint = shared.merge(sys.modules[__name__], args)
    complete(settings, vars(args))
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    data, hashes = load_data(settings)
    if checkpoint and checkpoint["settings"]["hashes"] != hashes:
        raise UserError(f"{settings['data']} holds other images than the run to resume has seen")
    settings["hashes"] = hashes
    learner = mnist_model.make_learner(settings, data["train"][0].shape[1])
    kind = "permuted" if settings["permuted"] else "sequential"
    folder = shared.folder_of(args, f"mnist-{settings['model']}{settings['layers']}-{kind}")
    if checkpoint:
        training.restore([learner], checkpoint)
    counts = {part: len(labels) for part, (_, labels) in data.items()}
    print(f"{kind} MNIST, {learner.name}, {parameters_line(settings, learner)}; images: {counts}")
    print(f"on {describe(settings['device'])['device_name']}; results in {folder}")
    test = None

    def save():
        training.save_checkpoint(folder / "checkpoint.pt", "mnist", settings, [learner])
        report = {
            "task": "mnist",
            # Not where the images lie: which they are is in the hashes.
            "settings": {name: value for name, value in settings.items() if name != "data"},
            "fixed": mnist_model.FIXED,
            "environment": describe(settings["device"]),
            "images": counts,
            "model": learner.name,
            **learner.result(),
            "test": test,
        }
        write_json(folder / "report.json", report)

    with training.stop_requests() as stop:
        while len(learner.validations) < settings["epochs"]:
            train_epoch(learner, settings, data["train"], save, stop)
            if stop or learner.outcome == "diverged":
                break
            validate(learner, settings, data["validation"], data["train"][0])
            save()
        if not stop and learner.outcome != "diverged":
            test = evaluate(learner.model, *data["test"])
            print(f"test: accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f}, last weights")
        save()
        draw(folder / "curves.png", settings, learner, steps_of_epoch(settings, data["train"]))
    if stop:
        print(f"stopped; to go on: python -m bench mnist --resume {folder}")
        return 130
    if learner.outcome == "diverged":
        print(f"the loss is not finite after step {learner.step}", file=sys.stderr)
        return 1
    print(f"curves.png, report.json and checkpoint.pt are in {folder}")
    return 0


def complete(settings, given):
    """Fills in what depends on the model, and refuses what it does not have."""
    if settings["model"] == "dense" and "layers" in given:
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


def steps_of_epoch(settings, data):
    return math.ceil(len(data[0]) / settings["batch"])


def pixels(images):
    """Bytes to [-1, 1)."""
    return images.float().div_(128).sub_(1)


def train_epoch(learner, settings, data, save, stop):
    """The rest of the epoch in which the learner is."""
    images, labels = data
    per_epoch = steps_of_epoch(settings, data)
    epoch = len(learner.validations)
    # The order depends on seed and epoch alone, so that a resumed run finds its place in it.
    learner.generator.manual_seed(settings["seed"] * 1_000_003 + epoch)
    order = torch.randperm(len(images), generator=learner.generator).to(images.device)
    rest = iter(order.split(settings["batch"])[learner.step - epoch * per_epoch :])

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
        steps=(epoch + 1) * per_epoch,
        learning_rate=lambda step: settings["lr"],
        log_every=settings["log_every"],
        save=save,
        stop=stop,
    )


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


def validate(learner, settings, data, train_images):
    """Adds a line to the learner's validations, and prints it beside the authors' log."""
    epoch = len(learner.validations) + 1
    result = evaluate(learner.model, *data)
    settled = with_settled_norms(learner.model, train_images, settings["batch"])
    result["settled_accuracy"] = evaluate(settled, *data)["accuracy"]
    log = authors_log(settings).get(epoch)
    learner.validations.append({"epoch": epoch, "step": learner.step, **result, "authors": log})
    beside = "" if log is None else f" (the authors' log: {log:.1f} %)"
    print(
        f"epoch {epoch}: validation {100 * result['accuracy']:.2f} %{beside}, with norms settled "
        f"{100 * result['settled_accuracy']:.2f} %, loss {result['loss']:.4f}, "
        f"{learner.seconds / epoch:.0f} s per epoch"
    )


def draw(path, settings, learner, per_epoch):
    """Training loss, and accuracy beside the authors' log, against epochs."""
    figure = new_figure(8, 4.5)
    if figure is None:
        return
    losses, accuracies = figure.subplots(1, 2)
    learner.plot(losses, per_epoch)
    losses.set(xlabel="epoch")
    shown = {line["epoch"]: 100 * line["accuracy"] for line in learner.validations}
    log = {epoch: value for epoch, value in authors_log(settings).items() if epoch <= len(shown)}
    for label, points in (("validation", shown), ("authors' log", log)):
        if points:
            accuracies.plot(*zip(*points.items(), strict=True), marker="o", label=label)
            accuracies.legend()
    accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
    accuracies.grid(alpha=0.3)
    kind = "Permuted" if settings["permuted"] else "Sequential"
    figure.suptitle(f"{kind} MNIST, {learner.name}")
    write_figure(path, figure, dpi=150)
