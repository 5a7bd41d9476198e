"""IndRNN and IndRNNCell: `torch.nn.RNN` and `RNNCell` with independent neurons."""

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import init
from .functional import GradClipMode, Nonlinearity, check_options, indrnn

RecurrentInit = Callable[[Tensor], object]


class _Recurrent(nn.Module):
    """Parameters and options of layers of independent neurons, each in one or both directions."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        nonlinearity: Nonlinearity,
        bias: bool,
        recurrent_max: float | None,
        recurrent_init: RecurrentInit | Sequence[RecurrentInit | None] | None,
        grad_clip: float | None,
        grad_clip_mode: GradClipMode,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, but is {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be positive, but is {size}")
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        if recurrent_max is not None and not (recurrent_max > 0 and math.isfinite(recurrent_max)):
            raise ValueError(
                f"recurrent_max must be positive and finite, or None, but is {recurrent_max}"
            )
        inits: Sequence[RecurrentInit | None] = (
            recurrent_init
            if isinstance(recurrent_init, Sequence)
            else [recurrent_init] * num_layers
        )
        if len(inits) != num_layers:
            raise ValueError(
                f"recurrent_init must have an initialiser for each of {num_layers} layers, "
                f"but has {len(inits)}"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.num_directions, self.nonlinearity, self.bias = num_directions, nonlinearity, bias
        self.recurrent_max, self.recurrent_init = recurrent_max, list(inits)
        self.grad_clip, self.grad_clip_mode = grad_clip, grad_clip_mode
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * num_directions
            for suffix in self._suffixes(layer):
                shapes = {"weight_ih": (hidden_size, size), "weight_hh": (hidden_size,)}
                if bias:
                    shapes["bias_ih"] = (hidden_size,)
                for name, shape in shapes.items():
                    self.register_parameter(
                        name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    )
        self.reset_parameters()

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self.num_directions]

    def reset_parameters(self) -> None:
        """Input weights as `nn.Linear`'s; biases 0; u by `recurrent_init`, or else U(0,
        recurrent_max or 1)."""
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                nn.init.kaiming_uniform_(getattr(self, f"weight_ih{suffix}"), a=math.sqrt(5))
                u = getattr(self, f"weight_hh{suffix}")
                fill = self.recurrent_init[layer]
                with torch.no_grad():
                    if fill is None:
                        init.uniform_(u, 0.0, self.recurrent_max or 1.0)
                    else:
                        fill(u)
                if self.bias:
                    nn.init.zeros_(getattr(self, f"bias_ih{suffix}"))

    def _run(
        self, x: Tensor, suffix: str, h0: Tensor | None, **sequences: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One layer in one direction over x (B, T, features)."""
        return indrnn(
            x,
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"weight_hh{suffix}"),
            h0,
            nonlinearity=self.nonlinearity,
            reverse=suffix.endswith("_reverse"),
            grad_clip=self.grad_clip,
            grad_clip_mode=self.grad_clip_mode,
            **sequences,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "nonlinearity": "relu",
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "recurrent_max": None,
            "grad_clip": None,
        }
        for name, default in defaults.items():
            value = getattr(self, name, default)
            if value != default:
                parts.append(f"{name}={value}")
        return ", ".join(parts)


class IndRNN(_Recurrent):
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
        recurrent_init: a function that fills u in place (see `fastindrnn.init`), or one for each
            layer; None for U(0, recurrent_max or 1).
        grad_clip, grad_clip_mode: as in `fastindrnn.functional.indrnn_scan`.

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
        recurrent_max: float | None = None,
        recurrent_init: RecurrentInit | Sequence[RecurrentInit | None] | None = None,
        grad_clip: float | None = None,
        grad_clip_mode: GradClipMode = "message",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            2 if bidirectional else 1,
            nonlinearity,
            bias,
            recurrent_max,
            recurrent_init,
            grad_clip,
            grad_clip_mode,
            device,
            dtype,
        )
        if isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability from 0 to 1, but is {dropout}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts between layers: with num_layers=1 it does nothing", stacklevel=2
            )
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional

    def flatten_parameters(self) -> None:
        """Nothing: for code that calls it on `nn.RNN`."""

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output at each step and the last states.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence without a
                batch.
            hx: initial states (D*L, B, H), without a batch (D*L, H); zeros if None.
            lengths: (B,) integers: steps from there on are padding; their output is 0.
            resets: booleans of the input's first two dimensions: the state before such a step is
                taken as 0.

        Returns:
            output like the input with D*H features, of the last layer, and h_n like hx: for each
            layer, forward then reverse direction, the state after the last step of its walk.
        """
        batched = input.dim() != 2
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be (time, {self.input_size}) or of 3 dimensions, the last "
                f"{self.input_size}, but is {tuple(input.shape)}"
            )
        x = input if batched else input.unsqueeze(0)
        time_first = batched and not self.batch_first
        if resets is not None:
            resets = resets if batched else resets.unsqueeze(0)
            resets = resets.transpose(0, 1) if time_first else resets
        states: Sequence[Tensor | None] = [None] * (self.num_layers * self.num_directions)
        if hx is not None:
            batch = (x.shape[time_first],) if batched else ()
            expected = (len(states), *batch, self.hidden_size)
            if hx.shape != expected:
                raise ValueError(f"hx must be {expected}, but is {tuple(hx.shape)}")
            states = (hx if batched else hx.unsqueeze(1)).unbind(0)

        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes(layer):
                rows = x.transpose(0, 1) if time_first else x
                h, h_n = self._run(rows, suffix, states[len(ends)], lengths=lengths, resets=resets)
                outputs.append(h.transpose(0, 1) if time_first else h)
                ends.append(h_n)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.training and self.dropout > 0 and layer < self.num_layers - 1:
                shape = (1, *x.shape[1:]) if time_first else (x.shape[0], 1, x.shape[2])
                x = x * nn.functional.dropout(x.new_ones(shape), self.dropout)
        h_n = torch.stack(ends)
        return (x, h_n) if batched else (x.squeeze(0), h_n.squeeze(1))


class IndRNNCell(_Recurrent):
    """One step of an `IndRNN` layer, h' = f(W x + b + u * h); for `torch.nn.RNNCell`.

    Its parameters have the names of a layer's (`weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`): the
    state dict of a one-layer `IndRNN` loads into it, and the layer's pass over a sequence equals
    the cell's, step by step.

    Args, errors, source: as `IndRNN`.

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
        super().__init__(
            input_size,
            hidden_size,
            1,
            1,
            nonlinearity,
            bias,
            recurrent_max,
            recurrent_init,
            grad_clip,
            grad_clip_mode,
            device,
            dtype,
        )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            input: (B, I) or (I,).
            hx: state (B, H) or (H,); zeros if None.

        Returns:
            The next state, (B, H) or (H,).
        """
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
        return self._run(rows, "_l0", h0)[1].reshape(expected)
