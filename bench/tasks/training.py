"""Training that can be stopped between any two steps and goes on as if it never had been."""

import math
import statistics
import time
from dataclasses import dataclass, field, fields

import torch
from torch import nn

WINDOW = 100  # a "running" figure is the mean of this many last steps
STRETCH = 10  # figures are read off the device once in this many steps, so that a GPU need not wait
SAVE_SECONDS = 60
MADE = "name", "model", "optimizer"


@dataclass
class Learner:
    """One model with what its training needs, and what the training has shown so far."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    carried: tuple = ()  # tensors from which the next step goes on: states, without their history
    series: dict[str, list[float]] = field(default_factory=dict)  # of every step: its loss, ...
    step_seconds: list[float] = field(default_factory=list)  # the mean of each stretch
    seconds: float = 0.0  # of training; evaluation does not count
    validations: list[dict] = field(default_factory=list)
    outcome: str = "not started"
    final: dict = field(default_factory=dict)  # measured once, when the training has ended

    @property
    def step(self):
        return len(self.series.get("loss", []))

    @property
    def parameters(self):
        return sum(parameter.numel() for parameter in self.model.parameters())

    def running(self, name="loss", step=None):
        """Mean over the last WINDOW steps before `step` (default: all that were made)."""
        step = self.step if step is None else step
        values = self.series.get(name, [])[max(0, step - WINDOW) : step]
        return statistics.fmean(values) if values else math.nan

    def reached(self, target):
        """The step at which the running loss was first below the target, or None."""
        steps = range(WINDOW, self.step + 1, STRETCH)
        return next((step for step in steps if self.running(step=step) < target), None)

    def line(self):
        """The progress so far."""
        milliseconds = 1e3 * statistics.median(self.step_seconds[-WINDOW // STRETCH :])
        figures = [
            f"{name} {values[-1]:.4f}, mean of {WINDOW} {self.running(name):.4f}"
            for name, values in self.series.items()
        ]
        parts = f"{self.name} step {self.step:>6}", *figures, f"{milliseconds:.1f} ms/step"
        return "  ".join(parts)

    def summary(self):
        minutes, seconds = divmod(round(self.seconds), 60)
        steps = f"{self.step} steps in {minutes} min {seconds:02d} s"
        return f"{self.outcome}; {steps}; mean loss of the last {WINDOW} {self.running():.5f}"

    def state_dict(self):
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in MADE}
        return record | {
            "carried": dict(enumerate(self.carried)),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = next(self.model.parameters()).device
        self.carried = tuple(part.to(device) for part in state["carried"].values())
        for name in ("series", "step_seconds", "seconds", "validations", "outcome", "final"):
            setattr(self, name, state[name])

    def result(self, target):
        """For the report of a run; JSON has no NaN."""
        curve = [
            {"step": step, **{name: finite(self.running(name, step)) for name in self.series}}
            for step in range(WINDOW, self.step + 1, WINDOW)
        ]
        return {
            "parameters": self.parameters,
            "outcome": self.outcome,
            "steps": self.step,
            "steps_to_target": self.reached(target),
            "running_loss": finite(self.running()),
            "seconds": self.seconds,
            "median_step_seconds": statistics.median(self.step_seconds or [0.0]),
            "validations": self.validations,
            "curve": curve,
            **self.final,
        }

    def plot(self, axes, label=None):
        """The running loss against steps."""
        steps = range(STRETCH, self.step + 1, STRETCH)
        losses = [self.running("loss", step) for step in steps]
        axes.plot(steps, losses, label=label or self.name)


def finite(value):
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Schedule:
    """When a learner is evaluated, and when it has trained enough."""

    steps: int
    seconds: float = math.inf
    target: float = -math.inf  # for the running loss
    stops_at_target: bool = True
    evaluate_every: int | None = None  # steps; at the end in any case
    log_every: int = 100

    def outcome(self, learner):
        """Why the training ends here; None where it goes on."""
        step = learner.step
        if step and not math.isfinite(learner.series["loss"][-1]):
            return "diverged"
        if self.stops_at_target and step >= WINDOW and learner.running() < self.target:
            return "target reached"
        if step >= self.steps:
            return "step limit"
        return "time limit" if learner.seconds >= self.seconds else None

    def next_stop(self, step):
        """The step before which nothing is to be done but to train."""
        lengths = STRETCH, self.evaluate_every or self.steps
        return min(self.steps, *(step - step % length + length for length in lengths))


def train(learner, task, schedule, save, stop):
    """Trains as the schedule says, until the loss is not finite, or `stop` is not empty.

    task.loss_of_step(learner, step) -> {"loss": a scalar, and what else is to be recorded};
    task.learning_rate(learner, step) -> float; task.evaluate(model) -> {figure: number};
    save() is called once in SAVE_SECONDS.
    """
    from tqdm import tqdm  # here, because --help needs none

    saved, outcome = time.monotonic(), None
    options = {"initial": learner.step, "desc": learner.name, "unit": "step", "disable": None}
    with tqdm(total=schedule.steps, **options) as bar:
        while outcome is None:
            first = learner.step
            outcome = schedule.outcome(learner)
            is_due = schedule.evaluate_every and first and first % schedule.evaluate_every == 0
            if (is_due or outcome) and outcome != "diverged":
                evaluate(learner, task, bar)
            if outcome:
                if outcome != "diverged":
                    finish(learner, task)
                break
            train_stretch(learner, task, schedule.next_stop(first), stop)
            bar.update(learner.step - first)
            bar.set_postfix(loss=f"{learner.running():.4f}", refresh=False)
            if stop:
                outcome = "interrupted"
            elif learner.step // schedule.log_every > first // schedule.log_every:
                bar.write(learner.line())
            if time.monotonic() - saved >= SAVE_SECONDS and not stop:
                save()
                saved = time.monotonic()
    learner.outcome = outcome


def train_stretch(learner, task, end, stop):
    """Trains until the step `end`, and records what the steps gave."""
    began, rows = time.perf_counter(), []
    for step in range(learner.step, end):
        if stop:
            break
        for group in learner.optimizer.param_groups:
            group["lr"] = task.learning_rate(learner, step)
        learner.optimizer.zero_grad()
        found = task.loss_of_step(learner, step)
        found["loss"].backward()
        learner.optimizer.step()
        rows.append(torch.stack([value.detach() for value in found.values()]))
    if not rows:
        return
    for name, values in zip(found, torch.stack(rows, 1).tolist(), strict=True):
        learner.series.setdefault(name, []).extend(values)
    elapsed = time.perf_counter() - began
    learner.seconds += elapsed
    learner.step_seconds.append(elapsed / len(rows))


@torch.no_grad()
def finish(learner, task):
    """Measures what is measured at the end alone."""
    learner.model.eval()
    learner.final = task.finish(learner.model)
    learner.model.train()


@torch.no_grad()
def evaluate(learner, task, bar):
    """Adds a line to the learner's validations and prints it; at most once for a step."""
    if learner.validations and learner.validations[-1]["step"] == learner.step:
        return
    learner.model.eval()
    found = task.evaluate(learner.model)
    learner.model.train()
    if found:
        about = {"step": learner.step, "seconds": learner.seconds}
        learner.validations.append(about | found)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        bar.write(
            f"{learner.name} step {learner.step:>6}  {figures}, after {learner.seconds:.0f} s"
        )
