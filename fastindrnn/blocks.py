"""The deep stacks of the papers: residual, dense, and any of them in both directions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import GradClipMode, Nonlinearity, check_bools, check_options
from .describe import describe_arguments
from .norm import Norm, NormPosition, check_norm
from .sequences import Sequences
from .units import (
    Device,
    RecurrentInit,
    Stack,
    Unit,
    check_dtype,
    check_probabilities,
    check_recurrent_max,
    check_sizes,
    spread_init,
)


class Projection(nn.Linear):
    """`nn.Linear` whose bias starts at 0, as those of the recurrences."""

    def reset_parameters(self) -> None:
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
        nonlinearity, bias, batch_first, recurrent_max, grad_clip, grad_clip_mode: as in `IndRNN`.
        dropout: probability with which, in training, a neuron of a sequence is zeroed at all steps,
            after each recurrence.
        zoneout, norm, norm_position, norm_steps: as in `IndRNN`.
        recurrent_init: as in `IndRNN`; a sequence has one for each of the L recurrences.

    `output_size` is H. h_n is (L, B, H), in the order of the signal.

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
        grad_clip_mode: GradClipMode = "message",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_blocks=num_blocks)
        check_bools(bias=bias, batch_first=batch_first)
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_norm(norm, norm_position, norm_steps)
        check_probabilities(dropout=dropout, zoneout=zoneout)
        check_recurrent_max(recurrent_max)
        check_dtype(dtype)
        self.input_size, self.hidden_size, self.num_blocks = input_size, hidden_size, num_blocks
        self.batch_first, self.zoneout, self.output_size = batch_first, zoneout, hidden_size
        options: dict[str, Any] = {
            "nonlinearity": nonlinearity,
            "bias": bias,
            "dropout": dropout,
            "norm": norm,
            "norm_position": norm_position,
            "norm_steps": norm_steps,
            "recurrent_max": recurrent_max,
            "grad_clip": grad_clip,
            "grad_clip_mode": grad_clip_mode,
        }
        self._arguments = {**options, "recurrent_init": recurrent_init}
        inits = iter(spread_init(recurrent_init, 2 * num_blocks + 1))

        def unit(inputs: int | None) -> Unit:
            place: dict[str, Any] = {"device": device, "dtype": dtype}
            init = next(inits)
            return Unit(
                inputs, hidden_size, zoneout=zoneout, recurrent_init=init, **options, **place
            )

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
        return 2 * self.num_blocks + 1, self.hidden_size

    def run_rows(
        self,
        x: Tensor,
        sequences: Sequences,
        state: Tensor | None,
        reverse: bool = False,
        first_step: int | None = 0,
    ) -> tuple[Tensor, Tensor]:
        starts = iter([None] * self.state_shape()[0] if state is None else state.unbind(0))
        ends = []

        def act(unit: nn.Module, x: Tensor) -> Tensor:
            x, h_n = unit(x, sequences, next(starts), reverse, first_step)
            ends.append(h_n)
            return x

        x = sequences.project(x, self.input.weight, self.input.bias)
        block: Any
        for block in self.blocks:
            y = act(block["second"], act(block["first"], x))
            x = x + sequences.project(y, block["output"].weight, block["output"].bias)
        return act(self.last, x), torch.stack(ends)


class DenseIndRNN(Stack):
    """Densely connected stack of independent neurons.

    A first layer of 6k features; then dense blocks of layers, each a bottleneck to 4k features and
    one of k, whose output is concatenated to its input; after each block, the last one too, a
    transition that halves the features. Every one of these has an input weight, recurrence and
    nonlinearity, norm and dropout.

    Args:
        input_size: features I of the input.
        growth: k, the features that each dense layer adds.
        blocks: number of dense layers in each block.
        first_features: features of the first layer, 6k if None; with 0 there is no such layer and
            the first block reads the input.
        last_features: features of the last transition, half of those that it reads if None; with 0
            there is no such transition.
        nonlinearity, bias, batch_first, recurrent_max, grad_clip, grad_clip_mode: as in `IndRNN`.
        dropout: probability with which, in training, a neuron of a sequence is zeroed at all steps,
            after each recurrence.
        zoneout, norm, norm_position, norm_steps: as in `IndRNN`.
        recurrent_init: as in `IndRNN`; a sequence has one for each recurrence, of which there are
            1 + sum(2 * layers + 1 for layers in blocks), one less without the first layer and one
            less without the last transition.

    `output_size` is the number of output features. h_n is (B, units): the states of all
    recurrences side by side, in the order of the signal.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Source: Li et al. 2019, arXiv 1910.06251, section 3.3.

    Example:
        >>> rnn = DenseIndRNN(10, growth=4, blocks=(2, 2))
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape[-1] == rnn.output_size
        True
    """

    def __init__(
        self,
        input_size: int,
        growth: int = 16,
        blocks: Sequence[int] = (8, 6, 4),
        nonlinearity: Nonlinearity = "relu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        *,
        first_features: int | None = None,
        last_features: int | None = None,
        zoneout: float = 0.0,
        norm: Norm | None = "batch",
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
        check_sizes(input_size=input_size, growth=growth)
        check_bools(bias=bias, batch_first=batch_first)
        if not isinstance(blocks, Sequence) or not blocks:
            raise ValueError(f"blocks must be a sequence of layers per block, but is {blocks!r}")
        check_sizes(**{f"blocks[{i}]": layers for i, layers in enumerate(blocks)})
        sizes = {"first_features": first_features, "last_features": last_features}
        for name, size in sizes.items():  # None, 0, or what check_sizes takes: 1 or more
            if isinstance(size, bool) or size not in (None, 0):
                check_sizes(**{name: size})
        check_options(nonlinearity, grad_clip, grad_clip_mode)
        check_norm(norm, norm_position, norm_steps)
        check_probabilities(dropout=dropout, zoneout=zoneout)
        check_recurrent_max(recurrent_max)
        check_dtype(dtype)
        self.input_size, self.growth = input_size, growth
        self.batch_first, self.zoneout = batch_first, zoneout
        count = 1 + sum(2 * layers + 1 for layers in blocks) - list(sizes.values()).count(0)
        inits = iter(spread_init(recurrent_init, count))
        options: dict[str, Any] = {
            "nonlinearity": nonlinearity,
            "bias": bias,
            "dropout": dropout,
            "norm": norm,
            "norm_position": norm_position,
            "norm_steps": norm_steps,
            "recurrent_max": recurrent_max,
            "grad_clip": grad_clip,
            "grad_clip_mode": grad_clip_mode,
        }
        self._arguments = {**options, **sizes, "blocks": blocks, "recurrent_init": recurrent_init}

        def unit(inputs: int, outputs: int) -> Unit:
            place: dict[str, Any] = {"device": device, "dtype": dtype}
            init = next(inits)
            return Unit(inputs, outputs, zoneout=zoneout, recurrent_init=init, **options, **place)

        features = 6 * growth if first_features is None else first_features or input_size
        self.first = unit(input_size, features) if first_features != 0 else None
        self.blocks = nn.ModuleList()
        for i, layers in enumerate(blocks):
            dense = nn.ModuleList()
            for _ in range(layers):
                pair = {"bottleneck": unit(features, 4 * growth), "layer": unit(4 * growth, growth)}
                dense.append(nn.ModuleDict(pair))
                features += growth
            parts: dict[str, nn.Module] = {"dense": dense}
            half = features // 2
            size = half if i < len(blocks) - 1 or last_features is None else last_features
            if size:
                parts["transition"] = unit(features, size)
                features = size
            self.blocks.append(nn.ModuleDict(parts))
        self.output_size = features

    def extra_repr(self) -> str:
        """The arguments that are not what they are by default."""
        return describe_arguments(DenseIndRNN, self, self._arguments)

    def _units(self) -> list[Unit]:
        return [module for module in self.modules() if isinstance(module, Unit)]

    def state_shape(self) -> tuple[int, ...]:
        return (sum(unit.hidden_size for unit in self._units()),)

    def run_rows(
        self,
        x: Tensor,
        sequences: Sequences,
        state: Tensor | None,
        reverse: bool = False,
        first_step: int | None = 0,
    ) -> tuple[Tensor, Tensor]:
        sizes = [unit.hidden_size for unit in self._units()]
        starts = iter([None] * len(sizes) if state is None else state.split(sizes, -1))
        ends = []

        def act(unit: nn.Module, x: Tensor) -> Tensor:
            x, h_n = unit(x, sequences, next(starts), reverse, first_step)
            ends.append(h_n)
            return x

        if self.first is not None:
            x = act(self.first, x)
        block: Any
        for block in self.blocks:
            for pair in block["dense"]:
                y = act(pair["layer"], act(pair["bottleneck"], x))
                x = sequences.concatenate([x, y])
            if "transition" in block:
                x = act(block["transition"], x)
        return x, torch.cat(ends, -1)


class Bidirectional(Stack):
    """A stack in both directions, side by side: the outputs are concatenated.

    Unlike `IndRNN(bidirectional=True)`, where each layer sees both directions of the one below, the
    two stacks meet at their outputs alone.

    Args:
        factory: makes one stack, without arguments; it is called twice.

    h_n holds the states of the stack that walks forwards, then those of the other: concatenated
    along the first dimension, for `DenseIndRNN` along the units.

    Raises:
        TypeError, ValueError: factory does not make a stack, or makes one twice.

    Example:
        >>> rnn = Bidirectional(lambda: ResidualIndRNN(10, 20, num_blocks=1))
        >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 40), (6, 3, 20)
    """

    def __init__(self, factory: Callable[[], Stack]) -> None:
        super().__init__()
        self.forwards, self.backwards = factory(), factory()
        for stack in (self.forwards, self.backwards):
            if not isinstance(stack, Stack):
                raise TypeError(f"factory must make a stack, but made {type(stack).__name__}")
        if self.forwards is self.backwards:
            raise ValueError("factory must make a new stack at each call, but made one twice")
        self.input_size, self.batch_first = self.forwards.input_size, self.forwards.batch_first
        self.zoneout = self.forwards.zoneout
        self.output_size = self.forwards.output_size + self.backwards.output_size

    def state_shape(self) -> tuple[int, ...]:
        first, *rest = self.forwards.state_shape()
        return (2 * first, *rest)

    def run_rows(
        self,
        x: Tensor,
        sequences: Sequences,
        state: Tensor | None,
        reverse: bool = False,
        first_step: int | None = 0,
    ) -> tuple[Tensor, Tensor]:
        # States are (L, B, H) or (B, units): the first dimension, or the units, count twice.
        along = -1 if len(self.forwards.state_shape()) == 1 else 0
        halves = (None, None) if state is None else state.chunk(2, along)
        outputs, ends = [], []
        for stack, half, backwards in zip(
            (self.forwards, self.backwards), halves, (reverse, not reverse), strict=True
        ):
            y, h_n = stack.run_rows(x, sequences, half, backwards, first_step)
            outputs.append(y)
            ends.append(h_n)
        return sequences.concatenate(outputs), torch.cat(ends, along)

    def step(self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None):
        """Not for a stream, whose end is not known: raises a ValueError."""
        raise ValueError("step needs one direction: a Bidirectional reads the sequence's end first")
