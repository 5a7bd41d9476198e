"""IndRNN: `torch.nn.RNN` with independent neurons."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import (
    check_bools,
    check_dtype,
    check_options,
    check_probabilities,
    check_recurrent_max,
    check_sizes,
    check_step,
)
from .describe import describe_arguments
from .functional import run_stack
from .norm import Norm, NormPosition, check_norm, make_norm, reset_norm
from .options import (
    WHOLE,
    Direction,
    Extents,
    GradClipMode,
    Nonlinearity,
    Parameters,
    Recurrence,
    opposite,
)
from .plan import Plan, plan
from .sequences import Sequences, prepare_input
from .stack import Stack
from .units import Device, Layer, RecurrentInit, reset_layer, run_both, run_step_of_all, spread_init


class IndRNN(Stack):
    """Layers of independent neurons, in place of `torch.nn.RNN`: h_t = f(W x_t + b + u * h_{t-1})
    with u a vector.

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
        bidirectional: a second set of neurons reads each sequence from its last step to its first;
            D = 2 directions, otherwise 1.
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
    layer for the backward, and nothing else of their size. With `lengths` it keeps a copy of the
    input whose padding is 0, and of a PackedSequence a copy in which each sequence is in one piece.
    During the backward there are, at most, two more tensors of the size of one layer's output: the
    gradients on both sides of the layer at hand (three with two directions).

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
        grad_clip_mode: GradClipMode = "per_step",
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
        self._all_suffixes = [end for layer in range(num_layers) for end in self._suffixes(layer)]
        self.reset_parameters()
        for suffix in self._all_suffixes if norm is not None else ():
            module = make_norm(norm, hidden_size, norm_steps, device, dtype)
            self.add_module(f"norm{suffix}", module)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.bidirectional else [f"_l{layer}"]

    def reset_parameters(self) -> None:
        """Input weights as `nn.Linear`'s; biases 0; u by `recurrent_init`, or U(0, recurrent_max or
        1); norms by their own `reset_parameters`."""
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                parameters = self._parameters_of(suffix)
                reset_layer(parameters, self.recurrent_init[layer], self.recurrent_max)
                reset_norm(self._norm_of(suffix))

    def _parameters_of(self, suffix: str) -> Parameters:
        return Parameters(
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"weight_hh{suffix}"),
        )

    def _norm_of(self, suffix: str) -> nn.Module | None:
        return getattr(self, f"norm{suffix}", None) if self.norm else None

    def flatten_parameters(self) -> None:
        """Nothing: for code that calls it on `nn.RNN`."""

    def state_shape(self) -> tuple[int, ...]:
        """The shape of h_n without the batch: (D * L, H)."""
        return self.num_layers * (2 if self.bidirectional else 1), self.hidden_size

    def plan(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Plan:
        """Which way `forward` takes with these arguments, in the present mode of the module and of
        PyTorch (training or evaluation, with or without gradients). Nothing is computed.

        Args:
            input, hx, lengths, resets: as in `forward`.

        Returns:
            The `fastindrnn.plan.Plan`: its `way`, and `why`.

        Example:
            >>> rnn = IndRNN(10, 20, num_layers=2)
            >>> print(rnn.plan(torch.randn(5, 3, 10)))
            stack: training, and nothing stands between the layers
        """
        prepared = prepare_input(input, self.input_size, self.batch_first, lengths, resets)
        state = None if hx is None else prepared.prepare_states(hx, self.state_shape())
        parameters = [self._parameters_of(suffix) for suffix in self._all_suffixes]
        extents, recurrence = prepared.sequences.extents(), self._recurrence("forward")
        return self._plan(prepared.x, state, extents, parameters, recurrence)

    def _plan(
        self,
        x: Tensor,
        state: Tensor | None,
        extents: Extents,
        parameters: list[Parameters],
        recurrence: Recurrence,
    ) -> Plan:
        return plan(
            x,
            parameters,
            state,
            extents,
            recurrence.towards("both") if self.bidirectional else recurrence,
            norm=None if self.norm is None else self.norm_position,
            zoneout=self.zoneout > 0,
            dropout=self.training and self.dropout > 0,
        )

    def _recurrence(self, direction: Direction) -> Recurrence:
        return Recurrence(self.nonlinearity, direction, self.grad_clip, self.grad_clip_mode)

    def _run_sequences(
        self, x: Tensor, sequences: Sequences, state: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        suffixes = self._all_suffixes
        parameters = [self._parameters_of(suffix) for suffix in suffixes]
        recurrence = self._recurrence(direction)
        planned = self._plan(x, state, sequences.extents(), parameters, recurrence)
        if planned.way == "step":
            y, h_n = run_step_of_all(x.squeeze(1), state, parameters)
            return y.unsqueeze(1), h_n
        if planned.way == "stack":
            return run_stack(x, parameters, state, sequences.extents(direction), recurrence)
        starts: Any = [None] * len(suffixes) if state is None else state.unbind(0)
        reversed_recurrence = recurrence.towards(opposite(direction))
        D = 2 if self.bidirectional else 1
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            here = slice(D * layer, D * layer + D)
            if planned.way == "both directions":
                x, both = run_both(x, sequences, starts[here], parameters[here], recurrence)
                ends += both
            else:
                outputs = []
                for i in range(len(suffixes))[here]:
                    is_reversed = suffixes[i].endswith("_reverse")
                    one = Layer(
                        parameters=parameters[i],
                        recurrence=reversed_recurrence if is_reversed else recurrence,
                        norm=self._norm_of(suffixes[i]),
                        norm_position=self.norm_position,
                        zoneout=self.zoneout,
                        training=self.training,
                    )
                    h, h_n = one.run(x, sequences, starts[i], planned.way)
                    outputs.append(h)
                    ends.append(h_n)
                x = sequences.concatenate(outputs)
            if self.training and self.dropout > 0 and layer < self.num_layers - 1:
                x = sequences.shared_over_time(x, self.dropout)
        return x, torch.stack(ends) if len(ends) > 1 else ends[0].unsqueeze(0)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.bidirectional:
            raise ValueError("step needs one direction, but this IndRNN is bidirectional")
        check_step(x_t, self.input_size)
        shape = self.num_layers, *x_t.shape[:-1], self.hidden_size
        if time_step is None and (state is None or getattr(state, "shape", None) == shape):
            parameters = [self._parameters_of(suffix) for suffix in self._all_suffixes]
            recurrence = self._recurrence("forward")
            if self._plan(x_t.unsqueeze(-2), state, WHOLE, parameters, recurrence).way == "step":
                return run_step_of_all(x_t, state, parameters)
        return super().step(x_t, state, time_step=time_step)

    step.__doc__ = Stack.step.__doc__

    def extra_repr(self) -> str:
        """The arguments that are not what they are by default."""
        return describe_arguments(IndRNN, self, self._arguments)
