"""ResidualIndRNN: a deep stack whose blocks add to a stream."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_bools, check_like, check_sizes
from .describe import describe_arguments
from .norm import Norm, NormPosition
from .ops.layout import project
from .options import Direction, GradClipMode, Nonlinearity
from .sequences import Sequences
from .stack import Stack
from .units import Device, RecurrentInit, Unit, UnitOptions, spread_init


class Projection(nn.Linear):
    """`nn.Linear` whose bias starts at 0, as those of the recurrences."""

    def reset_parameters(self) -> None:
        """The weight as `nn.Linear`'s; the bias 0."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ResidualIndRNN(Stack):
    """Pre-activation residual stack of independent neurons.

    An input weight; blocks x + weight(act(weight(act(x)))), where `act` is recurrence and
    nonlinearity with its norm and dropout and has no weight of its own; a last `act`. With a head
    behind it, 5 blocks are 12 weight layers.

    Args:
        input_size: features I of the input.
        hidden_size: neurons H of each recurrence.
        num_blocks: blocks; there are L = 2 * num_blocks + 1 recurrences.
        nonlinearity, bias, batch_first, recurrent_max: as in `IndRNN`.
        grad_clip, grad_clip_mode, device, dtype: as in `IndRNN`.
        dropout: probability with which, in training, a neuron of a sequence is zeroed at all steps,
            after each recurrence.
        norm: as in `IndRNN`, but "batch" by default.
        zoneout, norm_position, norm_steps: as in `IndRNN`.
        recurrent_init: as in `IndRNN`; a sequence has one for each of the L recurrences.

    `output_size` is H. h_n is (L, B, H), in the order of the signal. The stack has one direction;
    for two see `Bidirectional`.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2018, arXiv 1803.04831, figure 1(b).

    Example:
        >>> rnn = ResidualIndRNN(10, 20, num_blocks=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 20), (5, 3, 20)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_blocks: int = 5,
        nonlinearity: Nonlinearity = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        zoneout: float = 0.0,
        norm: Norm | None = "batch",
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
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_blocks=num_blocks)
        check_bools(batch_first=batch_first)
        self.input_size, self.hidden_size, self.num_blocks = input_size, hidden_size, num_blocks
        self.batch_first, self.zoneout, self.output_size = batch_first, zoneout, hidden_size
        options = UnitOptions(
            nonlinearity=nonlinearity,
            bias=bias,
            dropout=dropout,
            zoneout=zoneout,
            norm=norm,
            norm_position=norm_position,
            norm_steps=norm_steps,
            recurrent_max=recurrent_max,
            grad_clip=grad_clip,
            grad_clip_mode=grad_clip_mode,
            device=device,
            dtype=dtype,
        )
        self._arguments = {**vars(options), "recurrent_init": recurrent_init}
        inits = iter(spread_init(recurrent_init, 2 * num_blocks + 1))

        def unit(inputs: int | None) -> Unit:
            return Unit(inputs, hidden_size, options, next(inits))

        self.input = Projection(input_size, hidden_size, bias, device, dtype)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": unit(None),
                    "second": unit(hidden_size),
                    "output": Projection(hidden_size, hidden_size, bias, device, dtype),
                }
            )
            for _ in range(num_blocks)
        )
        self.last = unit(None)

    def extra_repr(self) -> str:
        """The arguments that are not what they are by default."""
        return describe_arguments(ResidualIndRNN, self, self._arguments)

    def state_shape(self) -> tuple[int, ...]:
        """The shape of h_n without the batch: (L, H)."""
        return 2 * self.num_blocks + 1, self.hidden_size

    def _run_sequences(
        self, x: Tensor, sequences: Sequences, state: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        check_like("weight", self.input.weight, x)
        starts = iter([None] * self.state_shape()[0] if state is None else state.unbind(0))
        ends = []

        def act(unit: nn.Module, x: Tensor) -> Tensor:
            x, h_n = unit(x, sequences, next(starts), direction)
            ends.append(h_n)
            return x

        x = project(x, self.input.weight, self.input.bias)
        block: Any
        for block in self.blocks:
            y = act(block["second"], act(block["first"], x))
            x = x + project(y, block["output"].weight, block["output"].bias)
        return act(self.last, x), torch.stack(ends)
