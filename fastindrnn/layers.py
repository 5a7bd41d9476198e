"""IndRNN: `torch.nn.RNN` with independent neurons."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import GradClipMode, Nonlinearity, check_bools, check_options
from .describe import describe_arguments
from .functional import run_layer, run_stack, run_step, takes_step
from .norm import Norm, NormPosition, check_norm, make_norm, reset_norm
from .ops import backend
from .sequences import Sequences
from .units import (
    Device,
    RecurrentInit,
    Stack,
    check_dtype,
    check_probabilities,
    check_recurrent_max,
    check_sizes,
    check_step,
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
            each time step, shared scale and shift), "layer", or None; or a function that makes a
            norm for a number of channels, as `partial(nn.BatchNorm1d, eps=1e-3, momentum=0.05)`.
            `nn.SyncBatchNorm.convert_sync_batchnorm` converts "batch".
        norm_position: "after" the nonlinearity or "before" the recurrence, on W x + b.
        norm_steps: for "batch_per_step", the time steps of the longest sequence.
        device, dtype: of the parameters.

    output has D*H features, of the last layer; h_n is (D*L, B, H): for each layer, forward then
    reverse direction, the state of the recurrence. With a norm after the recurrence the last output
    differs from it: take the output for a classifier.

    Parameters: `weight_ih_l0` (H, I), in later layers (H, D*H); `weight_hh_l0` (H,), which is u;
    `bias_ih_l0` (H,); `_reverse` behind each for the second direction. `output_size` is D*H.

    Memory: without norm, zoneout and dropout a training step keeps the input and the output of each
    layer, and nothing else of their size; with `lengths` the input's copy without padding, from a
    PackedSequence its padded form. At its highest it has, beside the input and the gradient that
    comes, these outputs and two gradients of the size of one, with two directions three; in half
    precision on a CPU also float32 copies for one layer.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831.

    Example:
        >>> rnn = IndRNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 20), (2, 3, 20)
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

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
        check_bools(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_norm(norm, norm_position, norm_steps)
        check_probabilities(dropout=dropout, zoneout=zoneout)
        check_recurrent_max(recurrent_max)
        check_dtype(dtype)
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
        self._arguments = {"norm_steps": norm_steps, "recurrent_init": recurrent_init}
        directions = 2 if bidirectional else 1
        self.output_size = hidden_size * directions
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * directions
            for suffix in self._suffixes(layer):
                shapes = {"weight_ih": (hidden_size, size), "weight_hh": (hidden_size,)}
                if bias:
                    shapes["bias_ih"] = (hidden_size,)
                for name, shape in shapes.items():
                    value = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + suffix, value)
        self.reset_parameters()
        for layer in range(num_layers if norm is not None else 0):
            for suffix in self._suffixes(layer):
                module = make_norm(norm, hidden_size, norm_steps, device, dtype)
                self.add_module(f"norm{suffix}", module)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def reset_parameters(self) -> None:
        """Input weights as `nn.Linear`'s; biases 0; u by `recurrent_init`, or U(0, recurrent_max or
        1); norms by their own `reset_parameters`."""
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                weight, bias, u, norm = self._parts(suffix)
                reset_unit(weight, bias, u, self.recurrent_init[layer], self.recurrent_max)
                reset_norm(norm)

    def _parts(self, suffix: str) -> tuple[Tensor, Tensor | None, Tensor, nn.Module | None]:
        return (
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"weight_hh{suffix}"),
            getattr(self, f"norm{suffix}", None) if self.norm else None,
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
        first_step: int | None = 0,
    ) -> tuple[Tensor, Tensor]:
        if sequences.are_whole() and x.shape[1] == 1 and self._takes_steps(x, state):
            y, last = self._step(x.squeeze(1), state)
            return y.unsqueeze(1), last
        if self._is_plain_stack() and self._is_trained(x, state):
            layers = [self._parts(f"_l{layer}") for layer in range(self.num_layers)]
            weights, biases, us, _ = zip(*layers, strict=True)
            walk = *sequences.tensors(reverse), self.nonlinearity, reverse, "auto"
            biases = biases if self.bias else ()
            return run_stack(x, weights, biases, us, state, *walk, self.grad_clip)
        states: Any = [None] * self.state_shape()[0] if state is None else state.unbind(0)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            if self.bidirectional and self._is_one_call(sequences):
                starts = states[2 * layer : 2 * layer + 2]
                x, both = self._run_both(layer, x, sequences, starts, reverse)
                ends += both
            else:
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
                        reverse != suffix.endswith("_reverse"),
                        {
                            "nonlinearity": self.nonlinearity,
                            "grad_clip": self.grad_clip,
                            "grad_clip_mode": self.grad_clip_mode,
                        },
                    )
                    outputs.append(h)
                    ends.append(h_n)
                x = sequences.concatenate(outputs)
            if self.training and self.dropout > 0 and layer < self.num_layers - 1:
                x = sequences.shared_over_time(x, self.dropout)
        return x, torch.stack(ends) if len(ends) > 1 else ends[0].unsqueeze(0)

    def _is_plain_stack(self) -> bool:
        """Whether nothing stands between the layers, and the backward may want to run through all
        of them at once."""
        return (
            self.num_layers > 1
            and not (self.bidirectional or self.norm or self.zoneout)
            and not (self.training and self.dropout > 0)
            and (self.grad_clip is None or self.grad_clip_mode == "message")
            and torch.is_grad_enabled()
            and backend.current != "reference"
            and not torch.compiler.is_exporting()
        )

    def _is_trained(self, x: Tensor, state: Tensor | None) -> bool:
        """Whether a backward will come, for which a stack keeps every layer's output."""
        return any(y is not None and y.requires_grad for y in (x, state, *self.parameters()))

    def _is_one_call(self, sequences: Sequences) -> bool:
        """Whether one operator serves both directions: not with a reset, which the second one has
        a step earlier, nor with a norm, which is faster on rows of its own, or zoneout."""
        return self.norm is None and not self.zoneout and sequences.resets is None

    def _run_both(
        self, layer: int, x: Tensor, sequences: Sequences, states: Any, reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Both directions of a layer: one product, for which their weights are put together (a copy
        of them at each call), and an output in one piece."""
        both = [self._parts(suffix) for suffix in self._suffixes(layer)]
        weights, biases, us, _ = zip(*both, strict=True)
        h, h_n = run_layer(
            x,
            torch.cat(weights),
            torch.cat(biases) if self.bias else None,
            torch.cat(us),
            None if states[0] is None else torch.cat(states, -1),
            *sequences.tensors(reverse),
            *(self.nonlinearity, reverse, True, "auto", self.grad_clip, self.grad_clip_mode),
        )
        return h, h_n.chunk(2, -1)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.bidirectional:
            raise ValueError("step needs one direction, but this IndRNN is bidirectional")
        check_step(x_t, self.input_size)
        shape = self.num_layers, *x_t.shape[:-1], self.hidden_size
        fits = state is None or (isinstance(state, Tensor) and state.shape == shape)
        if fits and self._takes_steps(x_t, state):
            return self._step(x_t, state)
        return super().step(x_t, state, time_step=time_step)

    def _takes_steps(self, x: Tensor, state: Tensor | None) -> bool:
        """Whether a step is nothing but products and recurrences."""
        if self.norm is not None or self.zoneout or self.bidirectional:
            return False
        if self.training and self.dropout > 0:
            return False
        return takes_step(x, self.weight_ih_l0, self.weight_hh_l0, state, self.nonlinearity)

    def _step(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        ends = []
        for layer in range(self.num_layers):
            weight, bias, u, _ = self._parts(f"_l{layer}")
            x = run_step(x, weight, bias, u, None if state is None else state[layer])
            ends.append(x)
        return x, torch.stack(ends)

    step.__doc__ = Stack.step.__doc__

    def extra_repr(self) -> str:
        """The arguments that are not what they are by default."""
        return describe_arguments(IndRNN, self, self._arguments)
