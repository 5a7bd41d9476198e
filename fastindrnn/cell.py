"""IndRNNCell: `torch.nn.RNNCell` with independent neurons."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from .checks import (
    check_bools,
    check_dtype,
    check_floating,
    check_layer,
    check_options,
    check_recurrent_max,
    check_sizes,
    check_state,
    refuse_script,
)
from .describe import describe_arguments
from .functional import run_layer, run_step
from .options import WHOLE, GradClipMode, Nonlinearity, Parameters, Recurrence
from .plan import plan
from .units import Device, RecurrentInit, reset_layer


class IndRNNCell(nn.Module):
    """One step of an `IndRNN` layer, in place of `torch.nn.RNNCell`: h' = f(W x + b + u * h).

    Its parameters have the names of a layer's (`weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`): the
    state dict of a one-layer `IndRNN` loads into it, and the layer's pass over a sequence equals
    the cell's, step by step.

    Args:
        input_size, hidden_size, bias, nonlinearity: as in `IndRNN`.
        recurrent_max, grad_clip, grad_clip_mode, device, dtype: as in `IndRNN`.
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
        grad_clip_mode: GradClipMode = "per_step",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_bools(bias=bias)
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_recurrent_max(recurrent_max)
        check_dtype(dtype)
        if recurrent_init is not None and not callable(recurrent_init):
            raise TypeError(f"recurrent_init must be a function or None, but is {recurrent_init!r}")
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

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)

    def reset_parameters(self) -> None:
        """As `IndRNN.reset_parameters`."""
        parameters = Parameters(self.weight_ih_l0, self.bias_ih_l0, self.weight_hh_l0)
        reset_layer(parameters, self.recurrent_init, self.recurrent_max)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            input: (B, I) or (I,).
            hx: state (B, H) or (H,); zeros if None. In a stream without an end |u| must be 1 at
                most, or the states grow until they overflow; take `recurrent_max=0.99`.

        Returns:
            The next state, (B, H) or (H,).

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        check_floating("input", input)
        if hx is not None:
            check_state("hx", hx, input.device)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input must be (batch, {self.input_size}) or ({self.input_size},), "
                f"but is {tuple(input.shape)}"
            )
        expected = (*input.shape[:-1], self.hidden_size)
        if hx is not None and hx.shape != expected:
            raise ValueError(f"hx must be {expected}, but is {tuple(hx.shape)}")
        parameters = Parameters(self.weight_ih_l0, self.bias_ih_l0, self.weight_hh_l0)
        recurrence = Recurrence(
            self.nonlinearity, grad_clip=self.grad_clip, grad_clip_mode=self.grad_clip_mode
        )
        way = plan(input.unsqueeze(-2), [parameters], hx, WHOLE, recurrence).way
        if way == "step":
            return run_step(input, parameters, hx)
        x = input.reshape(-1, 1, self.input_size)
        h0 = None if hx is None else hx.reshape(-1, self.hidden_size)
        check_layer(x, parameters, h0, WHOLE)
        _, h_n = run_layer(x, parameters, h0, WHOLE, recurrence, way)
        return h_n.reshape(expected)

    def extra_repr(self) -> str:
        """The arguments that are not what they are by default."""
        return describe_arguments(IndRNNCell, self, {})
