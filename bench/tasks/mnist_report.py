"""What a run of `python -m bench mnist` has shown, beside what the authors' runs have shown."""

import math
import statistics

from bench.environment import describe, write_atomically
from bench.tasks import training
from bench.tasks.mnist_model import GRADIENT_CLIP, INPUT_SLOPE, WEIGHT_DECAY

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


def parameters_line(settings, learner):
    """The count of parameters, and that it is the published one where there is one."""
    count = sum(parameter.numel() for parameter in learner.model.parameters())
    published = PUBLISHED_PARAMETERS.get((settings["model"], settings["layers"]))
    if settings["hidden"] != 128 or published is None:
        return f"{count:,} parameters"
    if count != published:
        raise AssertionError(f"{count:,} parameters, but the published model has {published:,}")
    return f"{count:,} parameters as published"


def authors_log(settings):
    """{epoch: validation accuracy in %} of the published run that this one repeats; or empty."""
    key = settings["model"], settings["layers"], settings["permuted"]
    if settings["hidden"] != 128 or settings["limit_train"] or key not in LOGS:
        return {}
    return dict(zip(EPOCHS, LOGS[key], strict=True))


def finite(value):
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def report(settings, learner, data, test):
    window = training.WINDOW
    every = range(window, learner.step + 1, window)
    return {
        "task": "mnist",
        # Not where the images lie: which they are is in the hashes.
        "settings": {name: value for name, value in settings.items() if name != "data"},
        "fixed": {
            "weight_decay": WEIGHT_DECAY,
            "gradient_clip": GRADIENT_CLIP,
            "input_weights": f"kaiming_uniform_, a = {INPUT_SLOPE}",
            "learning_rate_schedule": "constant",
            "validation": "the last twentieth of the training file",
        },
        "environment": describe(settings["device"]),
        "images": {part: len(labels) for part, (_, labels) in data.items()},
        "model": learner.name,
        "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
        "outcome": learner.outcome,
        "steps": learner.step,
        "seconds": learner.seconds,
        "median_step_seconds": statistics.median(learner.step_seconds or [0.0]),
        "validations": learner.validations,
        "test": test,
        "curve": [
            {
                "step": step,
                "loss": finite(learner.running_loss(step)),
                "accuracy": statistics.fmean(learner.accuracies[step - window : step]),
            }
            for step in every
        ],
    }


def draw(path, settings, learner, data):
    """Training loss, and accuracy beside the authors' log, against epochs."""
    figure = training.new_figure()
    if figure is None or not learner.step:
        return
    per_epoch = math.ceil(len(data["train"][1]) / settings["batch"])
    losses, accuracies = figure.subplots(1, 2)
    steps = range(training.FLUSH, learner.step + 1, training.FLUSH)
    losses.plot(
        [step / per_epoch for step in steps], [learner.running_loss(step) for step in steps]
    )
    losses.set(
        xlabel="epoch", ylabel=f"training loss, mean of {training.WINDOW} steps", yscale="log"
    )
    shown = [(line["epoch"], 100 * line["accuracy"]) for line in learner.validations]
    log = authors_log(settings).items()
    last = max(len(learner.validations), 1)
    for points, label in (
        (shown, "validation"),
        ([p for p in log if p[0] <= last], "authors' log"),
    ):
        if points:
            accuracies.plot(*zip(*points, strict=True), marker="o", label=label)
            accuracies.legend()
    accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{'Permuted' if settings['permuted'] else 'Sequential'} MNIST, {learner.name}")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))
