"""What every stack is made of: one recurrence with its input weight, norm, dropout and zoneout."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import init
from .checks import (
    check_bools,
    check_dtype,
    check_layer,
    check_options,
    check_probabilities,
    check_recurrence,
    check_recurrent_max,
)
from .functional import run_layer, run_scan, run_step
from .norm import Norm, NormPosition, check_norm, make_norm, normalize, reset_norm
from .ops.layout import project
from .options import Direction, GradClipMode, Nonlinearity, Parameters, Recurrence
from .plan import Way, plan
from .sequences import Sequences
from .zoneout import zoneout_scan

RecurrentInit = Callable[[Tensor], object]
Device = torch.device | str | None


def spread_init(
    recurrent_init: RecurrentInit | Sequence[RecurrentInit | None] | None, layers: int
) -> list[RecurrentInit | None]:
    """One initialiser of u for each of the layers."""
    if recurrent_init is None or callable(recurrent_init):
        return [recurrent_init] * layers
    if not isinstance(recurrent_init, Sequence) or isinstance(recurrent_init, str):
        raise TypeError(
            f"recurrent_init must be a function, or a sequence with one or None for each layer, "
            f"but is {recurrent_init!r}"
        )
    inits = list(recurrent_init)
    if not all(each is None or callable(each) for each in inits):
        raise TypeError(
            f"recurrent_init must hold a function or None for each layer, but is {recurrent_init!r}"
        )
    if len(inits) != layers:
        raise ValueError(
            f"recurrent_init must have an initialiser for each of {layers} layers, "
            f"but has {len(inits)}"
        )
    return inits


@torch.no_grad()
def reset_layer(
    parameters: Parameters, recurrent_init: RecurrentInit | None, recurrent_max: float | None
) -> None:
    """Input weights as `nn.Linear`'s; biases 0; u by its function, or U(0, recurrent_max or 1)."""
    if parameters.weight is not None:
        nn.init.kaiming_uniform_(parameters.weight, a=math.sqrt(5))
    if parameters.bias is not None:
        nn.init.zeros_(parameters.bias)
    if recurrent_init is None:
        init.uniform_(parameters.u, 0.0, recurrent_max or 1.0)
    else:
        recurrent_init(parameters.u)


@dataclass(frozen=True, slots=True)
class Layer:
    """One recurrence in one direction, with the input weight before it, if any, and its norm: made
    for a call from the parameters as they then are, which `torch.nn.utils.parametrize` may compute
    and `torch.func.functional_call` may replace."""

    parameters: Parameters
    recurrence: Recurrence
    norm: nn.Module | None
    norm_position: NormPosition
    zoneout: float
    training: bool

    def run(
        self, x: Tensor, sequences: Sequences, h0: Tensor | None, way: Way
    ) -> tuple[Tensor, Tensor]:
        """[projection], [norm before], recurrence with its nonlinearity, [norm after].

        Args:
            x: input (B, T, K) or (total, K), whose padding is 0.
            sequences: where the sequences of x begin and end.
            h0: (B, N) or None.
            way: of a `Plan`.

        Returns:
            The output (B, T, N) or (total, N), and h_n (B, N), of the recurrence itself.
        """
        parameters, extents = self.parameters, sequences.extents(self.recurrence.direction)
        weight, u = parameters.weight, parameters.u
        if weight is None:
            check_recurrence(x, x.shape[-1], u, h0, extents)
        else:
            check_layer(x, parameters, h0, extents)
        is_before = self.norm is not None and self.norm_position == "before"
        if weight is not None and way in ("step", "layer"):
            h, h_n = run_layer(x, parameters, h0, extents, self.recurrence, way)
        else:
            a = x if weight is None else project(x, weight, parameters.bias)
            a = normalize(self.norm, a, sequences) if is_before else a
            if self.zoneout:
                h, h_n = zoneout_scan(
                    a,
                    u,
                    h0,
                    probability=self.zoneout,
                    training=self.training,
                    sequences=sequences,
                    recurrence=self.recurrence,
                )
            else:
                h, h_n = run_scan(a, u, h0, extents, self.recurrence)
        return h if is_before else normalize(self.norm, h, sequences), h_n


def run_step_of_all(
    x: Tensor, state: Tensor | None, layers: Sequence[Parameters]
) -> tuple[Tensor, Tensor]:
    """One time step of layers one on the other: x (..., K) and states (L, ..., N) to the output of
    the last layer and the new states."""
    ends = []
    for i, parameters in enumerate(layers):
        x = run_step(x, parameters, None if state is None else state[i])
        ends.append(x)
    return x, torch.stack(ends)


def run_both(
    x: Tensor, sequences: Sequences, starts: Any, pair: Sequence[Parameters], recurrence: Recurrence
) -> tuple[Tensor, list[Tensor]]:
    """Both directions of a layer by one product, for which their weights are put together (a copy
    of them at each call), and an output in one piece.

    Args:
        x: input (B, T, K) or (total, K), whose padding is 0.
        sequences: where the sequences of x begin and end.
        starts: initial states (B, N) of the two directions, or None twice.
        pair: the parameters of the two directions.
        recurrence: in the direction of the first of them.

    Returns:
        The outputs side by side, and h_n of each.
    """
    # The operator takes what runs forwards first. In a stack that runs in reverse as a whole, that
    # is the layer's second direction.
    order = slice(None, None, 1 if recurrence.direction == "forward" else -1)
    first, second = pair[order]
    assert first.weight is not None
    assert second.weight is not None
    biases = [layer.bias for layer in (first, second) if layer.bias is not None]
    joined = Parameters(
        torch.cat((first.weight, second.weight)),
        torch.cat(biases) if biases else None,
        torch.cat((first.u, second.u)),
    )
    h0 = None if starts[0] is None else torch.cat(starts[order], -1)
    extents = sequences.extents()
    check_layer(x, joined, h0, extents)
    h, h_n = run_layer(x, joined, h0, extents, recurrence.towards("both"), "both directions")
    if recurrence.direction == "reverse":
        h = sequences.concatenate(h.chunk(2, -1)[order])
    return h, list(h_n.chunk(2, -1)[order])


@dataclass(frozen=True)
class UnitOptions:
    """What all units of a stack have in common, checked; the fields as in `IndRNN`."""

    nonlinearity: Nonlinearity
    bias: bool
    dropout: float
    zoneout: float
    norm: Norm | None
    norm_position: NormPosition
    norm_steps: int | None
    recurrent_max: float | None
    grad_clip: float | None
    grad_clip_mode: GradClipMode
    device: Device
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        check_bools(bias=self.bias)
        check_options(self.nonlinearity, self.grad_clip, self.grad_clip_mode)
        check_norm(self.norm, self.norm_position, self.norm_steps)
        check_probabilities(dropout=self.dropout, zoneout=self.zoneout)
        check_recurrent_max(self.recurrent_max)
        check_dtype(self.dtype)


class Unit(nn.Module):
    """One recurrence of a stack, with its input weight (none if `input_size` is None), norm and
    dropout. Its parameters have the names of `IndRNN`'s, without `_l0`."""

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        options: UnitOptions,
        recurrent_init: RecurrentInit | None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.norm_position = hidden_size, options.norm_position
        self.dropout, self.zoneout = options.dropout, options.zoneout
        self.recurrent_max, self.recurrent_init = options.recurrent_max, recurrent_init
        self.recurrence = Recurrence(
            options.nonlinearity, grad_clip=options.grad_clip, grad_clip_mode=options.grad_clip_mode
        )
        device, dtype = options.device, options.dtype

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih = self.bias_ih = None
        if input_size is not None:
            self.weight_ih = parameter(hidden_size, input_size)
            self.bias_ih = parameter(hidden_size) if options.bias else None
        self.weight_hh = parameter(hidden_size)
        self.norm: nn.Module | None = None
        self.reset_parameters()
        self.norm = make_norm(options.norm, hidden_size, options.norm_steps, device, dtype)

    def reset_parameters(self) -> None:
        """As `IndRNN.reset_parameters`."""
        reset_layer(self._current_parameters(), self.recurrent_init, self.recurrent_max)
        reset_norm(self.norm)

    def _current_parameters(self) -> Parameters:
        return Parameters(self.weight_ih, self.bias_ih, self.weight_hh)

    def forward(
        self, x: Tensor, sequences: Sequences, h0: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, features) or (total, features) and a state (B, H) to the output, of the same
        form, and the last state."""
        layer = Layer(
            parameters=self._current_parameters(),
            recurrence=self.recurrence.towards(direction),
            norm=self.norm,
            norm_position=self.norm_position,
            zoneout=self.zoneout,
            training=self.training,
        )
        planned = plan(
            x,
            [layer.parameters],
            h0,
            sequences.extents(),
            layer.recurrence,
            norm=None if self.norm is None else self.norm_position,
            zoneout=self.zoneout > 0,
        )
        h, h_n = layer.run(x, sequences, h0, planned.way)
        if self.training and self.dropout > 0:
            h = sequences.shared_over_time(h, self.dropout)
        return h, h_n

    def extra_repr(self) -> str:
        """The sizes and the nonlinearity."""
        weight = "" if self.weight_ih is None else f"{self.weight_ih.shape[1]}, "
        return f"{weight}{self.hidden_size}, nonlinearity={self.recurrence.nonlinearity}"
