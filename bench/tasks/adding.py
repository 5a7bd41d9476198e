"""Train an IndRNN on the adding problem, beside an LSTM and an IRNN if asked.

A sequence of numbers drawn from U(0, 1), two of them marked, one in each half; the answer is the
sum of the two. Always answering 1 gives a mean squared error of 1/6. The settings are those of
Li et al. 2018 (arXiv 1803.04831) and of the authors' Theano code: `SETTINGS` and `make_indrnn`.
"""

import sys
from functools import partial

import torch
from torch import nn

from bench import arguments
from bench.environment import describe, new_figure, write_figure, write_json
from bench.tasks import settings as shared
from bench.tasks import training
from bench.tasks.training import Learner
from fastindrnn import IndRNN, constrain_, constrain_after_step, init, recurrent_max_for

CHANCE = 1 / 6
GRADIENT_CLIP = 10.0
SETTINGS = {  # name: (default, type, help)
    "length": (1000, arguments.integer(2), "time steps of a sequence"),
    "steps": (60000, arguments.integer(1), "training steps at most"),
    "batch": (32, arguments.integer(1), "sequences per step"),
    "hidden": (128, arguments.integer(1), "hidden units per layer"),
    "layers": (2, arguments.integer(1), "recurrent layers"),
    "lr": (2e-4, arguments.positive, "learning rate of Adam"),
    "decay-every": (20000, arguments.integer(1), "steps until the rate falls to a tenth"),
    "seed": (0, arguments.integer(0), "of the initial weights and of the data"),
    "device": (None, arguments.device, "where to train (default: cuda if there is one, else cpu)"),
    "target": (0.01, arguments.positive, "stop when the mean MSE of 100 steps is below this"),
    "log-every": (100, arguments.integer(1), "steps between two lines"),
    "baseline-steps": (None, arguments.integer(1), "of each baseline (default: as the IndRNN)"),
}
FLAGS = {
    "keep-going": "train for all of --steps, also past the target",
    "baselines": "train an LSTM and an IRNN on the same data afterwards",
}
MAY_CHANGE = {"steps", "target", "log_every", "baseline_steps", "keep_going", "baselines"}


def add_arguments(parser):
    shared.add_arguments(parser, SETTINGS, FLAGS)


def run(args):
    settings, checkpoint = shared.merge(sys.modules[__name__], args)
    folder = shared.folder_of(args, f"adding-T{settings['length']}")
    names = ["IndRNN", "LSTM", "IRNN"] if settings["baselines"] else ["IndRNN"]
    learners = [make_learner(name, settings) for name in names]
    if checkpoint:
        training.restore(learners, checkpoint)
        if settings["target"] != checkpoint["settings"]["target"]:
            for learner in learners:
                learner.reached = None
    print(f"adding problem, T = {settings['length']}, on {settings['device']}; results in {folder}")

    def save():
        training.save_checkpoint(folder / "checkpoint.pt", "adding", settings, learners)
        report = {
            "task": "adding",
            "settings": settings,
            "environment": describe(settings["device"]),
            "chance": CHANCE,
            "window": training.WINDOW,
            "models": {learner.name: learner.result() for learner in learners},
        }
        write_json(folder / "report.json", report)

    with training.stop_requests() as stop:
        for learner in learners:
            if stop or (learner.reached and not settings["keep_going"]):
                continue
            limit = settings["steps"]
            if learner.name != "IndRNN":
                limit = settings["baseline_steps"] or learners[0].step
            training.train(
                learner,
                partial(loss_of_step, length=settings["length"], batch=settings["batch"]),
                steps=limit,
                learning_rate=lambda step: (
                    settings["lr"] * 0.1 ** (step // settings["decay_every"])
                ),
                target=settings["target"],
                stop_at_target=not settings["keep_going"],
                log_every=settings["log_every"],
                save=save,
                stop=stop,
            )
            print(summary(learner))
        save()
        draw(folder / "curves.png", settings["length"], learners)
    if stop:
        print(f"stopped; to go on: python -m bench adding --resume {folder}")
        return 130
    print(f"curves.png, report.json and checkpoint.pt are in {folder}")
    return 0


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


def loss_of_step(model, generator, *, length, batch):
    inputs, answers = make_batch(batch, length, generator)
    return {"loss": nn.functional.mse_loss(model(inputs), answers)}


class Regressor(nn.Module):
    """A recurrent network read out at its last state."""

    def __init__(self, recurrent, hidden):
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(hidden, 1)
        nn.init.xavier_uniform_(self.head.weight)  # as in the authors' code: Lasagne's default
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs):
        _, state = self.recurrent(inputs)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(state[-1])


def make_learner(name, settings):
    """The named network with its optimiser; all start from one seed and see the same data."""
    torch.manual_seed(settings["seed"])
    sizes = (2, settings["hidden"], settings["layers"])
    make = {"IndRNN": make_indrnn, "LSTM": make_lstm, "IRNN": make_irnn}[name]
    recurrent = make(*sizes, settings["length"])
    model = Regressor(recurrent, settings["hidden"]).to(settings["device"])
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    if isinstance(recurrent, IndRNN):
        constrain_(recurrent)
        constrain_after_step(optimizer, recurrent)
    else:
        # Those have no clip inside the recurrence: theirs is on the finished gradients.
        training.clip_before_step(optimizer, GRADIENT_CLIP)
    generator = torch.Generator(settings["device"]).manual_seed(settings["seed"])
    return Learner(name, model, optimizer, generator)


def make_indrnn(inputs, hidden, layers, length):
    largest = recurrent_max_for(length)
    starts = [partial(init.uniform_, low=0.0, high=largest)] * (layers - 1)
    recurrent = IndRNN(
        inputs,
        hidden,
        layers,
        batch_first=True,
        recurrent_max=largest,
        recurrent_init=[*starts, partial(init.long_memory_, T=length)],
        grad_clip=GRADIENT_CLIP,
    )
    return start_small(recurrent)


def make_irnn(inputs, hidden, layers, length):
    """Le et al. 2015 (arXiv 1504.00941): a plain ReLU network that starts from the identity."""
    recurrent = start_small(nn.RNN(inputs, hidden, layers, nonlinearity="relu", batch_first=True))
    for name, parameter in recurrent.named_parameters():
        if name.startswith("weight_hh"):
            nn.init.eye_(parameter)
    return recurrent


def make_lstm(inputs, hidden, layers, length):
    """PyTorch's LSTM and its initial weights, with the forget gates open (bias 1)."""
    recurrent = nn.LSTM(inputs, hidden, layers, batch_first=True)
    with torch.no_grad():
        for name, parameter in recurrent.named_parameters():
            if name.startswith("bias"):
                parameter[hidden : 2 * hidden] = 0.5  # there are two biases
    return recurrent


def start_small(recurrent):
    for name, parameter in recurrent.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.normal_(parameter, std=0.001)
        elif name.startswith("bias"):
            nn.init.zeros_(parameter)
    return recurrent


def summary(learner):
    outcome = f"target reached at step {learner.reached}" if learner.reached else learner.outcome
    minutes, seconds = divmod(round(learner.seconds), 60)
    loss = f"mean MSE of the last {training.WINDOW} steps {learner.running():.5f}"
    steps = f"{learner.step} steps in {minutes} min {seconds:02d} s"
    return f"{learner.name}: {outcome}; {steps}; {loss} (chance {CHANCE:.4f})"


def draw(path, length, learners):
    """Running loss against steps for every learner, and the loss of a constant answer."""
    figure = new_figure(8, 4.5)
    if figure is None:
        return
    axes = figure.add_subplot(title=f"Adding problem, T = {length}")
    for learner in learners:
        learner.plot(axes)
    options = {"color": "grey", "linestyle": "--", "linewidth": 1}
    axes.axhline(CHANCE, label="always answering the mean", **options)
    axes.set(xlabel="step")
    axes.legend()
    write_figure(path, figure, dpi=150)
