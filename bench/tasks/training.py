"""Training that can be stopped between any two steps and goes on as if it never had been."""

import hashlib
import io
import math
import statistics
import time
import warnings
from dataclasses import dataclass, field, fields

import torch
from torch import nn
from tqdm import tqdm

from bench.arguments import UserError
from bench.environment import write

WINDOW = 100  # a "running" figure is the mean of this many last steps
STRETCH = 10  # figures are read off the device once in this many steps, so that a GPU need not wait
SAVE_SECONDS = 60
FORMAT = 2


@dataclass
class Learner:
    """One model with all that its training needs, and what the training has shown so far."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of the data
    series: dict[str, list[float]] = field(default_factory=dict)  # of every step: its loss, ...
    step_seconds: list[float] = field(default_factory=list)  # the mean of each stretch
    seconds: float = 0.0
    target: float = -math.inf
    reached: int | None = None  # the step at which the running loss fell below the target
    outcome: str = "not started"
    validations: list[dict] = field(default_factory=list)

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

    def figures(self):
        """What the last steps have shown."""
        return "  ".join(
            f"{name} {values[-1]:.4f}, mean of {WINDOW} {self.running(name):.4f}"
            for name, values in self.series.items()
        )

    def line(self):
        """The progress so far."""
        milliseconds = 1e3 * statistics.median(self.step_seconds[-WINDOW // STRETCH :])
        return f"{self.name} step {self.step:>6}  {self.figures()}  {milliseconds:.1f} ms/step"

    def summary(self):
        outcome = f"target reached at step {self.reached}" if self.reached else self.outcome
        minutes, seconds = divmod(round(self.seconds), 60)
        steps = f"{self.step} steps in {minutes} min {seconds:02d} s"
        return f"{outcome}; {steps}; mean loss of the last {WINDOW} {self.running():.5f}"

    def record(self):
        """What the training has shown: all but the name and what is trained."""
        made = {"name", "model", "optimizer", "generator"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in made}

    def state_dict(self):
        return self.record() | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        for name in self.record():
            setattr(self, name, state[name])

    def result(self):
        """For the report of a run; JSON has no NaN."""
        every = range(WINDOW, self.step + 1, WINDOW)
        curve = [
            {"step": step, **{name: finite(self.running(name, step)) for name in self.series}}
            for step in every
        ]
        return {
            "parameters": self.parameters,
            "outcome": self.outcome,
            "steps": self.step,
            "steps_to_target": self.reached,
            "running_loss": finite(self.running()),
            "seconds": self.seconds,
            "median_step_seconds": statistics.median(self.step_seconds or [0.0]),
            "validations": self.validations,
            "curve": curve,
        }

    def plot(self, axes, unit=1):
        """The running loss against steps, or against `unit` steps."""
        steps = range(STRETCH, self.step + 1, STRETCH)
        losses = [self.running("loss", step) for step in steps]
        axes.plot([step / unit for step in steps], losses, label=self.name)
        axes.set(ylabel=f"training loss, mean of {WINDOW} steps", yscale="log")
        axes.grid(alpha=0.3)


def finite(value):
    return value if math.isfinite(value) else None


def clip_before_step(optimizer, largest):
    """Clips every element of the gradients before each step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(parameters, largest))


def train(
    learner,
    loss_of_step,
    *,
    steps,
    learning_rate,
    log_every,
    save,
    stop,
    target=-math.inf,
    stop_at_target=False,
):
    """Trains until `steps`, the target, a loss that is not finite, or `stop` is not empty.

    loss_of_step(model, generator) -> {"loss": a scalar, and what else is to be recorded};
    learning_rate(step) -> float; save() is called once in SAVE_SECONDS.
    """
    if learner.target != target:
        learner.target, learner.reached = target, None
    if learner.reached and stop_at_target:
        return
    saved, learner.outcome = time.monotonic(), "step limit"
    options = {"initial": learner.step, "desc": learner.name, "unit": "step", "disable": None}
    with tqdm(total=steps, **options) as bar:
        while learner.step < steps:
            first = learner.step
            train_stretch(learner, loss_of_step, steps, learning_rate, stop)
            bar.update(learner.step - first)
            bar.set_postfix_str(learner.figures(), refresh=False)
            if stop:
                learner.outcome = "interrupted"
                break
            if not math.isfinite(learner.series["loss"][-1]):
                learner.outcome = "diverged"
                break
            below = learner.step >= WINDOW and learner.running() < target
            if below and learner.reached is None:
                learner.reached = learner.step
            if learner.step // log_every > first // log_every or learner.reached == learner.step:
                bar.write(learner.line())
            if below and stop_at_target:
                learner.outcome = "target reached"
                break
            if time.monotonic() - saved >= SAVE_SECONDS:
                save()
                saved = time.monotonic()


def train_stretch(learner, loss_of_step, steps, learning_rate, stop):
    """Trains to the next multiple of STRETCH, or to `steps`, and records what the steps gave."""
    first, began, rows = learner.step, time.perf_counter(), []
    for step in range(first, min(first - first % STRETCH + STRETCH, steps)):
        if stop:
            break
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate(step)
        learner.optimizer.zero_grad()
        found = loss_of_step(learner.model, learner.generator)
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


def digest(content):
    """SHA-256 over all that nested dicts hold: an edited checkpoint no longer has its own."""
    if isinstance(content, dict):
        parts = [repr(key) + digest(value) for key, value in content.items()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    if isinstance(content, torch.Tensor):
        return f"{content.shape}{hashlib.sha256(content.cpu().numpy().tobytes()).hexdigest()}"
    return hashlib.sha256(repr(content).encode()).hexdigest()


def save_checkpoint(path, task, settings, learners):
    content = {
        "task": task,
        "settings": settings,
        "learners": {learner.name: learner.state_dict() for learner in learners},
        "random_state": torch.get_rng_state(),
        "cuda_random_states": dict(enumerate(torch.cuda.get_rng_state_all())),
    }
    # torch.save says of a full disk no more than that a write failed.
    whole = io.BytesIO()
    torch.save(content | {"format": FORMAT, "digest": digest(content)}, whole)
    write(path, whole.getbuffer())


def restore(learners, checkpoint):
    """Puts the learners where the checkpoint left them; those that it does not hold start anew."""
    try:
        for learner in learners:
            if learner.name in checkpoint["learners"]:
                learner.load_state_dict(checkpoint["learners"][learner.name])
    except (KeyError, RuntimeError, ValueError) as error:  # of another version of the package
        raise UserError(f"the checkpoint does not fit the model: {reason_of(error)}") from None
    torch.set_rng_state(checkpoint["random_state"])
    for index, state in checkpoint["cuda_random_states"].items():
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)


def load_checkpoint(path, task):
    """The content of a checkpoint, or a UserError that says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except Exception as error:
        reason = reason_of(error)
        if "weights_only" in str(error):  # PyTorch's text says how to load the file unsafely
            reason = "it holds more than tensors and plain values"
        raise UserError(f"{path} is not a checkpoint that can be read: {reason}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of the benchmark")
    if content.pop("digest", None) != digest(content):
        raise UserError(f"{path} has been changed since it was saved")
    if content["task"] != task:
        raise UserError(f"{path} is of python -m bench {content['task']}, not of {task}")
    return content


def reason_of(error):
    return (str(error).strip() or repr(error)).splitlines()[0]
