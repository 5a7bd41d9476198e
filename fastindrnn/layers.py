"""IndRNN and IndRNNCell: `torch.nn.RNN` and `RNNCell` with independent neurons."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .functional import GradClipMode, Nonlinearity, check_options, indrnn
from .norm import Norm, NormPosition, SequenceNorm, check_norm, make_norm
from .sequences import Sequences
from .units import (
    Device,
    RecurrentInit,
    Stack,
    check_probabilities,
    check_recurrent_max,
    check_sizes,
    reset_unit,
    run_unit,
    spread_init,
)


class IndRNN(Stack):
    """Layers of independent neurons, h_t = f(W x_t + b + u * h_{t-1}) with u a vector; for
    `torch.nn.RNN`.

    Args:
        input_size: features I of the input.
        hidden_size: neurons H of each layer and direction.
        num_layers: layers L, each on the output of the one before.
        nonlinearity: "relu", "identity", "hardtanh", "relu6" or "tanh".
        bias: without it, b = 0.
        batch_first: input and output are (B, T, features), otherwise (T, B, features). States are
            (D*L, B, H) always.
        dropout: probability with which, in training, a neuron of a sequence is zeroed at all steps,
            between layers.
        bidirectional: a second set of neurons walks each sequence from its end; D = 2 directions,
            otherwise 1.
        recurrent_max: bound of |u| for `constrain_` and `constrain_after_step`; see
            `recurrent_max_for`.
        recurrent_init: a function that fills u in place, called as f(u), or a sequence with one, or
            None, for each layer; None for U(0, recurrent_max or 1). See `fastindrnn.init`; for a
            long memory of the last of two layers `[None, partial(init.long_memory_, T=1000)]`.
        grad_clip, grad_clip_mode: as in `fastindrnn.functional.indrnn_scan`.
        zoneout: probability with which, in training, a neuron keeps its state at a step, for padded
            sequences without resets. Evaluation takes the expected mix, in a Python loop over time,
            and with grad_clip needs `torch.no_grad()`.
        norm: "batch" (statistics over batch and time together), "batch_per_step" (statistics for
            each time step, shared scale and shift), "layer", or None; see `fastindrnn.norm`.
        norm_position: "after" the nonlinearity or "before" the recurrence, on W x + b.
        norm_steps: for "batch_per_step", the time steps of the longest sequence.
        device, dtype: of the parameters.

    output has D*H features, of the last layer; h_n is (D*L, B, H): for each layer, forward then
    reverse direction, the state of the recurrence. With a norm after the recurrence the last output
    differs from it: take the output for a classifier.

    Parameters: `weight_ih_l0` (H, I), in later layers (H, D*H); `weight_hh_l0` (H,), which is u;
    `bias_ih_l0` (H,); `_reverse` behind each for the second direction.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831.

    Example:
        >>> rnn = IndRNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 20), (2, 3, 20)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        zoneout: float = 0.0,
        norm: Norm | None = None,
        norm_position: NormPosition = "after",
        norm_steps: int | None = None,
        recurrent_max: float | None = None,
        recurrent_init: RecurrentInit | Sequence[RecurrentInit | None] | None = None,
        grad_clip: float | None = None,
        grad_clip_mode: GradClipMode = "message",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_norm(norm, norm_position, norm_steps)
        check_probabilities(dropout=dropout, zoneout=zoneout)
        check_recurrent_max(recurrent_max)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts between layers: with num_layers=1 it does nothing", stacklevel=2
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.nonlinearity, self.bias, self.batch_first = nonlinearity, bias, batch_first
        self.dropout, self.bidirectional, self.norm_position = dropout, bidirectional, norm_position
        self.zoneout, self.norm, self.recurrent_max = zoneout, norm, recurrent_max
        self.recurrent_init = spread_init(recurrent_init, num_layers)
        self.grad_clip, self.grad_clip_mode = grad_clip, grad_clip_mode
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * directions
            for suffix in self._suffixes(layer):
                shapes = {"weight_ih": (hidden_size, size), "weight_hh": (hidden_size,)}
                if bias:
                    shapes["bias_ih"] = (hidden_size,)
                for name, shape in shapes.items():
                    value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, value)
                if norm is not None:
                    module = make_norm(norm, hidden_size, norm_steps, device, dtype)
                    self.add_module(f"norm{suffix}", module)
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def reset_parameters(self) -> None:
        """Input weights as `nn.Linear`'s; biases 0; u by `recurrent_init`, or U(0, recurrent_max or
        1); a norm starts as the identity."""
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                weight, bias, u, norm = self._parts(suffix)
                reset_unit(weight, bias, u, self.recurrent_init[layer], self.recurrent_max)
                if norm is not None:
                    norm.reset_parameters()

    def _parts(self, suffix: str) -> tuple[Tensor, Tensor | None, Tensor, SequenceNorm | None]:
        return (
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"weight_hh{suffix}"),
            getattr(self, f"norm{suffix}") if self.norm else None,
        )

    def flatten_parameters(self) -> None:
        """Nothing: for code that calls it on `nn.RNN`."""

    def state_shape(self) -> tuple[int, ...]:
        return self.num_layers * (2 if self.bidirectional else 1), self.hidden_size

    def run_rows(
        self,
        x: Tensor,
        sequences: Sequences,
        state: Tensor | None,
        reverse: bool = False,
        first_step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        states = [None] * self.state_shape()[0] if state is None else state.unbind(0)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes(layer):
                weight, bias, u, norm = self._parts(suffix)
                h, h_n = run_unit(
                    x,
                    sequences,
                    weight,
                    bias,
                    u,
                    states[len(ends)],
                    norm,
                    self.norm_position,
                    first_step,
                    self.zoneout,
                    self.training,
                    nonlinearity=self.nonlinearity,
                    reverse=reverse != suffix.endswith("_reverse"),
                    grad_clip=self.grad_clip,
                    grad_clip_mode=self.grad_clip_mode,
                )
                outputs.append(h)
                ends.append(h_n)
            x = sequences.concatenate(outputs)
            if self.training and self.dropout > 0 and layer < self.num_layers - 1:
                x = sequences.shared_over_time(x, self.dropout)
        return x, torch.stack(ends)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int = 0
    ) -> tuple[Tensor, Tensor]:
        if self.bidirectional:
            raise ValueError("step needs one direction, but this IndRNN is bidirectional")
        return super().step(x_t, state, time_step=time_step)

    step.__doc__ = Stack.step.__doc__

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "nonlinearity": "relu",
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "zoneout": 0.0,
            "norm": None,
            "recurrent_max": None,
            "grad_clip": None,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value}")
        return ", ".join(parts)


class IndRNNCell(nn.Module):
    """One step of an `IndRNN` layer, h' = f(W x + b + u * h); for `torch.nn.RNNCell`.

    Its parameters have the names of a layer's (`weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`): the
    state dict of a one-layer `IndRNN` loads into it, and the layer's pass over a sequence equals
    the cell's, step by step.

    Args:
        input_size, hidden_size, bias, nonlinearity, recurrent_max, grad_clip, grad_clip_mode,
            device, dtype: as in `IndRNN`.
        recurrent_init: one function that fills u in place, or None.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831.

    Example:
        >>> cell = IndRNNCell(10, 20)
        >>> h = cell(torch.randn(3, 10))  # (3, 20)
        >>> h = cell(torch.randn(3, 10), h)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "relu",
        *,
        recurrent_max: float | None = None,
        recurrent_init: RecurrentInit | None = None,
        grad_clip: float | None = None,
        grad_clip_mode: GradClipMode = "message",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_recurrent_max(recurrent_max)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.nonlinearity, self.recurrent_max = nonlinearity, recurrent_max
        self.recurrent_init = recurrent_init
        self.grad_clip, self.grad_clip_mode = grad_clip, grad_clip_mode
        shape = (hidden_size, input_size)
        self.weight_ih_l0 = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.weight_hh_l0 = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        if bias:
            self.bias_ih_l0 = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        else:
            self.register_parameter("bias_ih_l0", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `IndRNN.reset_parameters`."""
        parts = self.weight_ih_l0, self.bias_ih_l0, self.weight_hh_l0
        reset_unit(*parts, self.recurrent_init, self.recurrent_max)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            input: (B, I) or (I,).
            hx: state (B, H) or (H,); zeros if None.

        Returns:
            The next state, (B, H) or (H,).
        """
        for name, value in (("input", input), ("hx", hx)):
            if not isinstance(value, Tensor) and (name == "input" or value is not None):
                raise TypeError(f"{name} must be a tensor, but is {type(value).__name__}")
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be (batch, {self.input_size}) or ({self.input_size},), "
                f"but is {tuple(input.shape)}"
            )
        expected = (*input.shape[:-1], self.hidden_size)
        if hx is not None and hx.shape != expected:
            raise ValueError(f"hx must be {expected}, but is {tuple(hx.shape)}")
        rows = input.reshape(-1, 1, self.input_size)
        h0 = None if hx is None else hx.reshape(-1, self.hidden_size)
        _, h_n = indrnn(
            rows,
            self.weight_ih_l0,
            self.bias_ih_l0,
            self.weight_hh_l0,
            h0,
            nonlinearity=self.nonlinearity,
            grad_clip=self.grad_clip,
            grad_clip_mode=self.grad_clip_mode,
        )
        return h_n.reshape(expected)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, nonlinearity={self.nonlinearity}"
