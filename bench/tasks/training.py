"""Training that can be stopped between any two steps and goes on as if it never had been."""

import contextlib
import ctypes
import io
import math
import signal
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from bench.arguments import UserError
from bench.environment import write_atomically

WINDOW = 100  # "running MSE" is the mean of the losses of this many last steps
FLUSH = 10  # losses are read off the device once in this many steps, so that a GPU need not wait

try:
    from tqdm import tqdm
except ModuleNotFoundError:

    class tqdm(contextlib.nullcontext):
        """Stands in where tqdm is not installed: no bar, but the lines."""

        write = staticmethod(print)

        def __init__(self, **options):
            super().__init__(self)

        def update(self, steps):
            pass

        def set_postfix_str(self, text, refresh):
            pass


@dataclass
class Learner:
    """One model with all that its training needs, and what the training has shown so far."""

    RECORD: ClassVar = {  # name: its type, of a list that of its elements
        "losses": float,
        "step_seconds": float,
        "seconds": float,
        "reached": int | None,
        "outcome": str,
    }
    SERIES: ClassVar = ("losses",)  # the lists that get what each step's loss_of_step returns

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of the data
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(
        default_factory=list
    )  # mean of each stretch between two reads
    seconds: float = 0.0
    reached: int | None = None  # the step at which the running loss fell below the target
    outcome: str = "not started"

    @property
    def step(self):
        return len(self.losses)

    def running_loss(self, step=None):
        """Mean loss of the last WINDOW steps before `step` (default: all that were made)."""
        step = self.step if step is None else step
        return statistics.fmean(self.losses[max(0, step - WINDOW) : step]) if step else math.nan

    def figures(self):
        """What the last steps have shown, for a line of progress."""
        return f"MSE {self.losses[-1]:.5f}  mean of last {WINDOW} {self.running_loss():.5f}"

    def state_dict(self):
        state = {name: getattr(self, name) for name in self.RECORD}
        return state | {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        """Raises a ValueError, or what its parts raise, for a state that is not of this learner."""
        for name, kind in self.RECORD.items():
            is_list = isinstance(getattr(self, name), list)
            values = state[name] if is_list else [state[name]]
            if not (isinstance(values, list) and all(isinstance(v, kind) for v in values)):
                raise ValueError(f"{name} of {self.name} is of a wrong type")
        if len({len(state[name]) for name in self.SERIES}) > 1:
            raise ValueError(f"{' and '.join(self.SERIES)} of {self.name} differ in length")
        self.model.load_state_dict(state["model"])
        made = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._check_optimizer(made, trained=bool(state["losses"]))
        self.generator.set_state(state["generator"].cpu())
        for name in self.RECORD:
            setattr(self, name, state[name])

    def _check_optimizer(self, made, trained):
        """A ValueError unless what was loaded into Adam is that of these parameters, with the
        options that the optimizer was `made` with, but for the learning rate."""
        loaded = self.optimizer.state_dict()["param_groups"]
        rate = {"lr": None}
        if [group | rate for group in loaded] != [group | rate for group in made]:
            raise ValueError(f"the optimizer of {self.name} has other options")
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                shapes = {name: value.shape for name, value in self.optimizer.state[p].items()}
                moments = {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}
                if shapes != (moments if trained else {}):
                    raise ValueError(f"the optimizer of {self.name} lacks the state of a parameter")


@contextlib.contextmanager
def stop_requests():
    """Yields a list, empty until the first Ctrl-C; a second Ctrl-C ends the program at once."""
    requests = []

    def request(number, frame):
        requests.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requests
    finally:
        signal.signal(signal.SIGINT, before)


def keep_freed_memory():
    """Keeps what a step frees for the next one, where the C library is GNU's.

    It gives large blocks back to the system at once, and the page faults of taking them again
    were a fifth of a step of the adding problem (32 against 26 ms).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


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
    save_every=None,
):
    """Trains until `steps`, the target, a loss that is not finite, or `stop` is not empty.

    loss_of_step(model, generator) -> the loss, or with what else is to be recorded: a tuple of
    scalars, one for each of the learner's SERIES; learning_rate(step) -> float; save(), once a
    minute, or at each multiple of `save_every`, itself one of FLUSH.
    """
    keep_freed_memory()
    pending, saved = [], time.monotonic()

    def read_losses():
        nonlocal began
        if not pending:
            return
        rows = torch.stack(pending).tolist()
        for name, values in zip(learner.SERIES, zip(*rows, strict=True), strict=True):
            getattr(learner, name).extend(values)
        elapsed = time.perf_counter() - began
        learner.seconds += elapsed
        learner.step_seconds.append(elapsed / len(pending))
        bar.set_postfix_str(learner.figures(), refresh=False)
        bar.update(len(pending))
        pending.clear()
        began = time.perf_counter()

    learner.outcome = "step limit"
    bar = tqdm(total=steps, initial=learner.step, desc=learner.name, unit="step", disable=None)
    with bar:
        began = time.perf_counter()
        while learner.step + len(pending) < steps:
            if stop:
                learner.outcome = "interrupted"
                break
            for group in learner.optimizer.param_groups:
                group["lr"] = learning_rate(learner.step + len(pending))
            learner.optimizer.zero_grad()
            made = loss_of_step(learner.model, learner.generator)
            made = made if isinstance(made, tuple) else (made,)
            made[0].backward()
            learner.optimizer.step()
            pending.append(torch.stack([value.detach() for value in made]))
            if (learner.step + len(pending)) % FLUSH:
                continue
            read_losses()
            if not math.isfinite(learner.losses[-1]):
                learner.outcome = "diverged"
                break
            below = learner.step >= WINDOW and learner.running_loss() < target
            if below and learner.reached is None:
                learner.reached = learner.step
            if learner.step % log_every == 0 or learner.reached == learner.step:
                bar.write(progress_line(learner))
            if below and stop_at_target:
                learner.outcome = "target reached"
                break
            late = time.monotonic() - saved > 60
            if late if save_every is None else learner.step % save_every == 0:
                save()
                saved = time.monotonic()
                began = time.perf_counter()
        read_losses()


def progress_line(learner):
    milliseconds = 1e3 * statistics.median(learner.step_seconds)
    return (
        f"{learner.name:<8} step {learner.step:>6}  {learner.figures()}  {milliseconds:.1f} ms/step"
    )


def save_checkpoint(path, task, settings, learners):
    content = {
        "format": 1,
        "task": task,
        "settings": settings,
        "learners": {learner.name: learner.state_dict() for learner in learners},
        "random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all(),
    }
    # torch.save says of a full disk no more than that a write failed.
    whole = io.BytesIO()
    torch.save(content, whole)
    write_atomically(path, lambda temporary: temporary.write_bytes(whole.getbuffer()))


def restore(learners, checkpoint):
    """Puts the learners where the checkpoint left them; those that it does not hold start anew."""
    states = checkpoint["learners"]
    try:
        if learners[0].name not in states:
            raise ValueError(f"it lacks {learners[0].name}")
        for learner in learners:
            if learner.name in states:
                learner.load_state_dict(states[learner.name])
        torch.set_rng_state(checkpoint["random_state"])
        for index, state in enumerate(
            checkpoint["cuda_random_states"][: torch.cuda.device_count()]
        ):
            torch.cuda.set_rng_state(state, index)
    except KeyError as error:
        raise UserError(f"the checkpoint does not fit the model: it lacks {error}") from None
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the checkpoint does not fit the model: {reason}") from None


def load_checkpoint(path, task):
    """The content of a checkpoint, or a UserError that says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if "weights_only" in str(error):  # PyTorch's text says how to load the file unsafely
            reason = "it holds more than tensors and plain values"
        raise UserError(f"{path} is not a checkpoint that can be read: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path} is not a checkpoint of this version of the benchmark")
    if content.get("task") != task:
        raise UserError(f"{path} is of python -m bench {content.get('task')}, not of {task}")
    for name, kind in (("settings", dict), ("learners", dict), ("cuda_random_states", list)):
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path} has been changed: {name} is not a {kind.__name__}")
    return content


def draw_curves(path, title, learners, chance):
    """Running loss against steps for every learner, and the loss of a constant answer, as a PNG."""
    figure = new_figure()
    if figure is None:
        return
    axes = figure.add_subplot()
    for learner in (learner for learner in learners if learner.step):
        steps = range(FLUSH, learner.step + 1, FLUSH)
        axes.plot(steps, [learner.running_loss(step) for step in steps], label=learner.name)
    axes.axhline(
        chance, color="grey", linestyle="--", linewidth=1, label="always answering the mean"
    )
    axes.set(
        xlabel="step", ylabel=f"MSE, mean of the last {WINDOW} steps", yscale="log", title=title
    )
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def new_figure():
    """An empty figure; None, and a line that says so, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return None
    return Figure(figsize=(8, 4.5), layout="constrained")
