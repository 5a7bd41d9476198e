"""What every stack is made of: one recurrence with what stands around it, and the way in and
out."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import init
from .checks import FLOATING, GradClipMode, Nonlinearity, check_floating
from .functional import indrnn_scan, run_layer
from .norm import Norm, NormPosition, make_norm, normalize, refuse_step, reset_norm
from .sequences import Sequences, prepare_input
from .zoneout import zoneout_scan

RecurrentInit = Callable[[Tensor], object]
Device = torch.device | str | None


def check_sizes(**sizes: int) -> None:
    """Raises a TypeError or ValueError unless each is a positive int."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int, but is {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be positive, but is {size}")


def check_number(name: str, value: float) -> None:
    """Raises a TypeError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but is {type(value).__name__}")


def check_probabilities(**probabilities: float) -> None:
    """Raises a TypeError or ValueError unless each is a probability."""
    for name, value in probabilities.items():
        check_number(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability from 0 to 1, but is {value}")


def check_recurrent_max(recurrent_max: float | None) -> None:
    """Raises a TypeError or ValueError unless it is a bound or None."""
    if recurrent_max is None:
        return
    check_number("recurrent_max", recurrent_max)
    if not (recurrent_max > 0 and math.isfinite(recurrent_max)):
        raise ValueError(
            f"recurrent_max must be positive and finite, or None, but is {recurrent_max}"
        )


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises a TypeError or ValueError unless parameters can be of it."""
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or None, but is {type(dtype).__name__}")
    if dtype not in FLOATING:
        raise ValueError(f"dtype must be float32, float64, bfloat16 or float16, but is {dtype}")


def check_step(x_t: Tensor, features: int) -> None:
    """Raises a TypeError or ValueError unless it is the input of a step."""
    if not isinstance(x_t, Tensor):
        raise TypeError(f"x_t must be a tensor, but is {type(x_t).__name__}")
    if x_t.dim() not in (1, 2) or x_t.shape[-1] != features:
        raise ValueError(
            f"x_t must be (batch, {features}) or ({features},), but is {tuple(x_t.shape)}"
        )


def refuse_script(module: nn.Module) -> NoReturn:
    """Raises a NotImplementedError that says what to do: `torch.jit.script` knows neither our
    arguments that are given by name nor packed sequences."""
    raise NotImplementedError(
        f"torch.jit.script cannot compile an {type(module).__name__}: use torch.compile, or "
        "torch.export for a program without Python"
    )


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
def reset_unit(
    weight: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    recurrent_init: RecurrentInit | None,
    recurrent_max: float | None,
) -> None:
    """Input weights as `nn.Linear`'s; biases 0; u by its function, or U(0, recurrent_max or 1)."""
    if weight is not None:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        nn.init.zeros_(bias)
    if recurrent_init is None:
        init.uniform_(u, 0.0, recurrent_max or 1.0)
    else:
        recurrent_init(u)


def run_unit(
    x: Tensor,
    sequences: Sequences,
    weight: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    h0: Tensor | None,
    norm: nn.Module | None,
    norm_position: NormPosition,
    first_step: int | None,
    zoneout: float,
    training: bool,
    reverse: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """[projection], [norm before], recurrence with its nonlinearity, [norm after]: rows, h_n."""
    before = norm is not None and norm_position == "before"
    if weight is not None and not before and not zoneout:
        walk = *sequences.tensors(reverse), options["nonlinearity"], reverse, False, "auto"
        clip = options["grad_clip"], options["grad_clip_mode"]
        h, h_n = run_layer(x, weight, bias, u, h0, *walk, *clip)
        return normalize(norm, h, sequences, first_step), h_n
    a = x if weight is None else sequences.project(x, weight, bias)
    a = normalize(norm, a, sequences, first_step) if before else a
    if zoneout:
        drawn = zoneout, training, sequences
        h, h_n = zoneout_scan(a, u, h0, *drawn, reverse=reverse, **options)
    else:
        h, h_n = indrnn_scan(a, u, h0, reverse=reverse, **options, **sequences.options(reverse))
    return h if before else normalize(norm, h, sequences, first_step), h_n


class Unit(nn.Module):
    """One recurrence of a stack, with its input weight (none if `input_size` is None), norm and
    dropout. Its parameters have the names of `IndRNN`'s, without `_l0`."""

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int,
        *,
        nonlinearity: Nonlinearity,
        bias: bool,
        dropout: float,
        zoneout: float,
        norm: Norm | None,
        norm_position: NormPosition,
        norm_steps: int | None,
        recurrent_max: float | None,
        recurrent_init: RecurrentInit | None,
        grad_clip: float | None,
        grad_clip_mode: GradClipMode,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.norm_position = hidden_size, norm_position
        self.dropout, self.zoneout = dropout, zoneout
        self.recurrent_max, self.recurrent_init = recurrent_max, recurrent_init
        self.options: dict[str, Any] = {
            "nonlinearity": nonlinearity,
            "grad_clip": grad_clip,
            "grad_clip_mode": grad_clip_mode,
        }

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih = self.bias_ih = None
        if input_size is not None:
            self.weight_ih = parameter(hidden_size, input_size)
            self.bias_ih = parameter(hidden_size) if bias else None
        self.weight_hh = parameter(hidden_size)
        self.norm: nn.Module | None = None
        self.reset_parameters()
        self.norm = make_norm(norm, hidden_size, norm_steps, device, dtype)

    def reset_parameters(self) -> None:
        """As `IndRNN.reset_parameters`."""
        parts = self.weight_ih, self.bias_ih, self.weight_hh
        reset_unit(*parts, self.recurrent_init, self.recurrent_max)
        reset_norm(self.norm)

    def forward(
        self,
        x: Tensor,
        sequences: Sequences,
        h0: Tensor | None,
        reverse: bool,
        first_step: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Rows x and a state (B, H) to rows and the last state."""
        parts = self.weight_ih, self.bias_ih, self.weight_hh, h0, self.norm, self.norm_position
        drawn = self.zoneout, self.training
        h, h_n = run_unit(x, sequences, *parts, first_step, *drawn, reverse, self.options)
        if self.training and self.dropout > 0:
            h = sequences.shared_over_time(h, self.dropout)
        return h, h_n

    def extra_repr(self) -> str:
        weight = "" if self.weight_ih is None else f"{self.weight_ih.shape[1]}, "
        return f"{weight}{self.hidden_size}, nonlinearity={self.options['nonlinearity']}"


class Stack(nn.Module):
    """What `IndRNN`, `ResidualIndRNN`, `DenseIndRNN` and `Bidirectional` share: the forms of input
    and state, and streaming.

    `isinstance(module, Stack)` finds them in a model. A subclass of your own sets the attributes
    below and gives the methods `state_shape` and `run_rows`; `forward` and `step` come from here.

    Attributes:
        input_size: features of the input.
        output_size: features of the output.
        batch_first: whether inputs and outputs are (B, T, features), not (T, B, features).
        zoneout: probability of zoneout, 0 without it.
    """

    input_size: int
    output_size: int
    batch_first: bool
    zoneout: float

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)

    def state_shape(self) -> tuple[int, ...]:
        """The shape of the states, without the batch, which comes before the last dimension."""
        raise NotImplementedError

    def run_rows(
        self,
        x: Tensor,
        sequences: Sequences,
        state: Tensor | None,
        reverse: bool = False,
        first_step: int | None = 0,
    ) -> tuple[Tensor, Tensor]:
        """Rows and states (..., B, units) to rows and the last states."""
        raise NotImplementedError

    if TYPE_CHECKING:  # nn.Module calls `forward` and does not say what that returns

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            resets: Tensor | None = None,
            time_step: int | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def __call__(
            self, input: PackedSequence, hx: Tensor | None = None, *, time_step: int | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        time_step: int | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """The output at each step and the last states.

        Args:
            input: (T, B, I); with batch_first (B, T, I); (T, I) for one sequence without a batch;
                or a PackedSequence.
            hx: initial states, of the shape of h_n; zeros if None. Where h_n of one chunk of a
                stream is hx of the next, |u| must be 1 at most (`recurrent_max_for(None)`): with a
                larger one the states grow from chunk to chunk until they overflow.
            lengths: (B,) integer tensor on the input's device: steps from there on are padding;
                their output is 0.
            resets: booleans of the input's first two dimensions: such a step starts a new sequence,
                in both directions.
            time_step: which step of its sequence the input begins with; it matters for
                norm="batch_per_step" alone, which needs it where `hx` is given. 0 if None.

        A PackedSequence takes neither `lengths` nor `resets`; its states are in the caller's order.

        Returns:
            output, of the input's form; h_n, the state of each recurrence after the last step that
            it computes (in reverse direction the first of the sequence): the class says in which
            order. It is the recurrence's own state, before the norm and the dropout behind it, so
            that with these the last output differs from it.

        Raises:
            TypeError, ValueError: an argument does not fit; raised before any computation.
        """
        prepared = prepare_input(input, self.input_size, self.batch_first, lengths, resets)
        if self.zoneout and (resets is not None or isinstance(input, PackedSequence)):
            raise ValueError("zoneout needs padded sequences without resets")
        state = None if hx is None else prepared.prepare_states(hx, self.state_shape())
        first_step = _first_step(time_step, hx)
        x, h_n = self.run_rows(prepared.x, prepared.sequences, state, first_step=first_step)
        return prepared.restore(x), prepared.restore_states(h_n)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One time step, for streams: after `eval()` the numbers of the full pass, to rounding.

        The state has the input's dtype. In bfloat16 and float16, which round it at every step, a
        neuron remembers for some hundred steps at most: keep streams in float32.

        Args:
            x_t: (B, I) or (I,).
            state: as h_n of the full pass; zeros if None.
            time_step: which step of the sequence this is; it matters for norm="batch_per_step"
                alone, which needs it where `state` is given. 0 if None.

        Returns:
            y_t (B, features) or (features,), and the state for the next step.

        Raises:
            TypeError, ValueError: an argument does not fit; the stack is in training mode and has
                batch norm, whose statistics are over all steps.
        """
        check_step(x_t, self.input_size)
        check_floating("x_t", x_t)
        if self.training:
            refuse_step(self)
        first_step = _first_step(time_step, state)
        has_batch = x_t.dim() == 2
        prepared = prepare_input(x_t.unsqueeze(-2), self.input_size, True, None, None)
        if state is not None:
            state = prepared.prepare_states(state, self.state_shape(), "state")
        y, state = self.run_rows(prepared.x, prepared.sequences, state, first_step=first_step)
        y = y[:, 0] if has_batch else y[0, 0]
        return y, prepared.restore_states(state)


def _first_step(time_step: int | None, state: Tensor | None) -> int | None:
    """The time step that an input begins with; None if nobody said and it need not be the first."""
    if time_step is None:
        return 0 if state is None else None
    if isinstance(time_step, bool) or not isinstance(time_step, int):
        raise TypeError(f"time_step must be an int or None, but is {type(time_step).__name__}")
    if time_step < 0:
        raise ValueError(f"time_step must be at least 0, but is {time_step}")
    return time_step
