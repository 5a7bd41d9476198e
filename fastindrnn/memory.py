"""What each neuron remembers: its recurrent weight, its half-life, whether it is ever active.

The neurons of a layer are independent, so that each can be read by itself: k steps after a unit
impulse at its input, the state of neuron n is u[n]^k. Li et al. 2018, arXiv 1803.04831, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .checks import check_module, check_sizes
from .ops import backend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def half_life(u: Tensor) -> Tensor:
    """The steps until a unit impulse has decayed to half: log(1/2) / log|u|.

    The half-life is infinite where |u| >= 1, 0 where u = 0, and 1 where |u| = 1/2. It is that of
    the recurrence without its nonlinearity: with relu and u < 0 the state is 0 after one step.

    Args:
        u: recurrent weights, of any shape and floating dtype.

    Returns:
        Half-lives in steps, float64, of u's shape; NaN where u is.

    Raises:
        TypeError: u is no tensor of a floating dtype.

    Example:
        >>> half_life(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [0.0, 1.0, inf]
    """
    if not isinstance(u, Tensor) or not u.is_floating_point():
        given = u.dtype if isinstance(u, Tensor) else type(u).__name__
        raise TypeError(f"u must be a tensor of a floating dtype, but is {given}")
    size = u.detach().double().abs()
    return torch.where(size >= 1, math.inf, math.log(0.5) / size.log())


@dataclass(frozen=True)
class LayerMemory:
    """The neurons of one recurrence.

    Args:
        name: of the recurrent weights in the module or checkpoint.
        u: the recurrent weights (H,), in float64.
        dead: (H,) booleans: which neurons were 0 at every step of the data; None without data.
    """

    name: str
    u: Tensor
    dead: Tensor | None = None

    @property
    def half_life(self) -> Tensor:
        """The steps until a unit impulse has decayed to half, (H,): see `fastindrnn.memory`."""
        return half_life(self.u)

    @property
    def quantiles(self) -> dict[float, float]:
        """The quantiles 0, 0.05, 0.25, 0.5, 0.75, 0.95 and 1 of u."""
        at = torch.tensor(QUANTILES, dtype=torch.float64)
        return dict(zip(QUANTILES, torch.quantile(self.u, at).tolist(), strict=True))

    @property
    def kept(self) -> float:
        """The share of neurons with |u| >= 1, which do not forget."""
        return (self.u.abs() >= 1).double().mean().item()


def read_memory(
    source: nn.Module | Mapping[str, Any], batches: Iterable[Any] | None = None
) -> list[LayerMemory]:
    """Reads the memory of each recurrence in a module or checkpoint, in the order of the names.

    Args:
        source: any module with layers of this package; or a state dict, also within dictionaries
            and lists. Every vector whose name begins with `weight_hh` is read; matrices of that
            name, as in `nn.RNN`, are not.
        batches: inputs to run the module on, each the first argument or a tuple of all arguments. A
            neuron that is 0 at every step of all of them is dead.

    Returns:
        One `LayerMemory` for each recurrence; none where the source has none.

    Raises:
        TypeError: `source` is neither; batches are given without a module, or are one tensor.
        ValueError: a layer has zoneout, as in `activity`.
    """
    if isinstance(source, nn.Module):
        # An alias of a shared parameter is the same recurrence.
        found = dict(_vectors(dict(source.named_parameters())))
    elif isinstance(source, Mapping):
        found = dict(_vectors(source))
    else:
        raise TypeError(f"source must be a module or a dict, but is {type(source).__name__}")
    dead: dict[str, Tensor] = {}
    if batches is not None:
        if not isinstance(source, nn.Module):
            raise TypeError(f"batches need a module to run, but source is {type(source).__name__}")
        if isinstance(batches, Tensor):
            raise TypeError("batches must be an iterable of inputs, as [x], but is one tensor")
        if not isinstance(batches, Iterable):
            raise TypeError(
                f"batches must be an iterable of inputs, but is {type(batches).__name__}"
            )
        for batch in batches:
            arguments = batch if isinstance(batch, tuple) else (batch,)
            for name, calls in _watch(source, arguments, {}).items():
                for h in calls:
                    silent = reduce(h == 0, "... neurons -> neurons", "all").cpu()
                    dead[name] = silent & dead.get(name, silent)
    return [
        LayerMemory(name, u.detach().double().cpu(), dead.get(name)) for name, u in found.items()
    ]


def activity(module: nn.Module, *arguments: Any, **options: Any) -> dict[str, Tensor]:
    """Runs a module and returns the states of each recurrence in it at all steps.

    Args:
        module: any module with layers of this package. It runs once, in evaluation mode, without
            gradients and not compiled; its training mode is then as before.
        arguments, options: of its forward.

    Returns:
        By the name of the recurrent weights, the states of each recurrence, before a norm that
        comes after it: (B, T, H), or (total, H) for a PackedSequence; 0 in padding. Where the
        module calls a recurrence several times, as a loop over a cell does, T counts the steps of
        all calls.

    Raises:
        TypeError: module is no module.
        ValueError: a recurrence is called with batches of different sizes; a layer has zoneout,
            whose states in evaluation are computed by no operator.

    Example:
        >>> rnn = IndRNN(10, 20, num_layers=2)
        >>> activity(rnn, torch.randn(5, 3, 10))["weight_hh_l1"].shape
        torch.Size([3, 5, 20])
    """
    check_module(module)
    states = {}
    for name, calls in _watch(module, arguments, options).items():
        batches = {tuple(h.shape[:-2]) for h in calls}
        if len(batches) > 1:
            raise ValueError(
                f"module must call {name} with one size of batch, but does with {sorted(batches)}"
            )
        states[name] = calls[0] if len(calls) == 1 else torch.cat(calls, -2)
    return states


def plot(
    layers: Sequence[LayerMemory],
    states: Mapping[str, Tensor] | None = None,
    *,
    path: str | Path | None = None,
    neurons: int = 24,
) -> Figure:
    """Draws for each layer the histogram of u and the sorted half-lives; with `states` also the
    activity of some neurons in the first sequence, from short to long memory, each on its own
    scale.

    Args:
        layers: from `read_memory`.
        states: from `activity` of the same module, or None.
        path: of an image file to write, or None.
        neurons: how many neurons the activity shows.

    Returns:
        The figure. A title counts the neurons of infinite half-life, which no curve can show.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are no layers, or no neurons to show.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not isinstance(layers, Sequence) or not all(isinstance(x, LayerMemory) for x in layers):
        raise TypeError(f"layers must be what read_memory returns, but is {type(layers).__name__}")
    if not layers:
        raise ValueError("layers must hold at least one layer, but is empty")
    if states is not None and not isinstance(states, Mapping):
        raise TypeError(f"states must be what activity returns, but is {type(states).__name__}")
    check_sizes(neurons=neurons)
    from matplotlib.figure import Figure

    columns = 2 if states is None else 3
    figure = Figure(figsize=(4.5 * columns, 2.2 * len(layers) + 0.4), layout="constrained")
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for layer, (histogram, memory, *heat) in zip(layers, grid, strict=True):
        u, lives = layer.u, layer.half_life
        histogram.hist(u[u.isfinite()].tolist(), bins=40)
        histogram.set_title(layer.name, fontsize="small")
        histogram.set(xlabel="u", ylabel="neurons")
        finite = lives[lives.isfinite()].sort().values
        memory.plot(finite.tolist(), marker=".", linestyle="none")
        memory.set_yscale("symlog", linthresh=1)
        memory.set_ylim(bottom=0)
        kept = int(lives.isinf().sum())
        memory.set_title(f"{kept} of {len(u)} neurons forget nothing", fontsize="small")
        memory.set(xlabel="neuron, sorted", ylabel="half-life in steps")
        for axes in heat:
            _draw_activity(axes, layer, (states or {}).get(layer.name), neurons)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_activity(axes: Any, layer: LayerMemory, h: Tensor | None, neurons: int) -> None:
    if h is None or h.numel() == 0:
        axes.set_axis_off()
        return
    order = layer.u.abs().argsort()
    shown = order[torch.linspace(0, len(order) - 1, min(neurons, len(order))).round().long()]
    states_shown = (h[0] if h.dim() == 3 else h).detach().float().cpu()[:, shown]
    # Long memory grows large: on one scale for all, the other neurons would not be seen.
    peaks = reduce(states_shown.abs(), "steps neurons -> 1 neurons", "max")
    scaled = states_shown / torch.where(peaks > 0, peaks, 1.0)
    pixels = rearrange(scaled, "steps neurons -> neurons steps")
    image = axes.imshow(pixels.tolist(), aspect="auto", interpolation="nearest", origin="lower")
    axes.figure.colorbar(image, ax=axes, label="of its own peak")
    title = "activity" if layer.dead is None else f"activity, {int(layer.dead.sum())} dead"
    axes.set_title(title, fontsize="small")
    axes.set(xlabel="step", ylabel="neuron, by |u|")


def _watch(
    module: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> dict[str, list[Tensor]]:
    """Runs the module. Returns the states of each recurrence, one tensor for each call of it."""
    if any(getattr(part, "zoneout", 0) for part in module.modules()):
        raise ValueError("module's zoneout must be 0 to see its states: set it for that time")
    modes = {part: part.training for part in module.modules()}
    watch = _Watch(dict(_vectors(dict(module.named_parameters()))))
    # The reference, and PyTorch's own operations which take a single time step, are no operators
    # that could be watched: the kernels of the module's device are, when they are asked for.
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    chosen = "triton" if device.type == "cuda" or backend.current == "triton" else "cpu"
    try:
        with torch.no_grad(), backend(chosen), watch:
            module.eval()(*arguments, **options)
    finally:
        for part, training in modes.items():
            part.training = training
    return watch.calls


class _Watch(TorchDispatchMode):
    """Keeps what the operators `scan` and `indrnn` return, by the name of the parameter that is
    their u; for a u that concatenates two parameters, a half by each name."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {id(u): [name] for name, u in vectors.items()}
        self.calls: dict[str, list[Tensor]] = {}
        self.concatenated: list[Tensor] = []  # kept alive, so that no id is given again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::cat" and all(id(part) in self.names for part in args[0]):
            self.concatenated.append(output)
            self.names[id(output)] = [name for part in args[0] for name in self.names[id(part)]]
        place = {"fastindrnn::scan": 1, "fastindrnn::indrnn": 3}.get(name)
        names = [] if place is None else self.names.get(id(args[place]), [])
        for name, h in zip(names, output[0].chunk(len(names), -1) if names else [], strict=True):
            self.calls.setdefault(name, []).append(h)
        return output


def _vectors(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each vector whose name begins with weight_hh in nested dictionaries and lists, and its path
    with dots."""
    if isinstance(content, Tensor):
        name = path.rsplit(".", 1)[-1]
        if name.startswith("weight_hh") and content.dim() == 1 and content.is_floating_point():
            yield path, content
    elif isinstance(content, Mapping | list | tuple):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _vectors(value, f"{path}.{key}" if path else str(key))
