"""Train an IndRNN on the adding problem, beside an LSTM and an IRNN if asked.

A sequence of numbers drawn from U(0, 1), two of them marked, one in each half; the answer is the
sum of the two. Always answering 1 gives a mean squared error of 1/6. The settings are those of
Li et al. 2018 (arXiv 1803.04831) and of the authors' Theano code: `SETTINGS` and `make_indrnn`.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import nn

from bench import arguments
from bench.tasks import training
from bench.tasks.run import Task
from bench.tasks.training import Learner
from fastindrnn import IndRNN, constrain_, constrain_after_step, init, recurrent_max_for

CHANCE = 1 / 6
GRADIENT_CLIP = 10.0


class Adding(Task):
    SETTINGS: ClassVar = Task.SETTINGS | {
        "length": (1000, arguments.integer(2), "time steps of a sequence"),
        "steps": (60000, arguments.integer(1), "training steps at most"),
        "layers": (2, arguments.integer(1), "recurrent layers"),
        "decay-every": (20000, arguments.integer(1), "steps until the rate falls to a tenth"),
        "target": (0.01, arguments.positive, "stop when the mean MSE of 100 steps is below this"),
        "baseline-steps": (None, arguments.integer(1), "of each baseline (default: as the IndRNN)"),
    }
    FLAGS: ClassVar = {
        "keep-going": "train for all of --steps, also past the target",
        "baselines": "train an LSTM and an IRNN on the same data afterwards",
    }
    MAY_CHANGE: ClassVar = Task.MAY_CHANGE | {
        *("steps", "target", "baseline_steps", "keep_going", "baselines")
    }

    def __init__(self, settings):
        self.settings = settings
        names = ["IndRNN", "LSTM", "IRNN"] if settings["baselines"] else ["IndRNN"]
        self.learners = [make_learner(name, settings) for name in names]
        self.name = f"adding-T{settings['length']}"
        self.title = f"Adding problem, T = {settings['length']}"

    def train(self, save, stop):
        settings, (first, *_) = self.settings, self.learners
        for learner in self.learners:
            if stop:
                break
            steps = settings["steps"] if learner is first else settings["baseline_steps"]
            training.train(
                learner,
                partial(loss_of_step, length=settings["length"], batch=settings["batch"]),
                steps=steps or first.step,
                learning_rate=lambda step: (
                    settings["lr"] * 0.1 ** (step // settings["decay_every"])
                ),
                target=settings["target"],
                stop_at_target=not settings["keep_going"],
                log_every=settings["log_every"],
                save=save,
                stop=stop,
            )
            print(f"{learner.name}: {learner.summary()} (chance {CHANCE:.4f})")

    def facts(self):
        models = {learner.name: learner.result() for learner in self.learners}
        return {"chance": CHANCE, "models": models}

    def draw(self, figure):
        """The loss of every learner, and of a constant answer."""
        axes = figure.add_subplot(xlabel="step")
        for learner in self.learners:
            learner.plot(axes)
        axes.axhline(CHANCE, label="always answering 1", color="grey", linestyle="--")
        axes.legend()


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


add_arguments, run = Adding.add_arguments, Adding.run
