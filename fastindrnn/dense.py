"""DenseIndRNN: a deep stack whose layers read the outputs of all layers before them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_bools, check_sizes
from .describe import describe_arguments
from .norm import Norm, NormPosition
from .options import Direction, GradClipMode, Nonlinearity
from .sequences import Sequences
from .stack import Stack
from .units import Device, RecurrentInit, Unit, UnitOptions, spread_init


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
        nonlinearity, bias, batch_first, recurrent_max: as in `IndRNN`.
        grad_clip, grad_clip_mode, device, dtype: as in `IndRNN`.
        dropout: probability with which, in training, a neuron of a sequence is zeroed at all steps,
            after each recurrence.
        norm: as in `IndRNN`, but "batch" by default.
        zoneout, norm_position, norm_steps: as in `IndRNN`.
        recurrent_init: as in `IndRNN`; a sequence has one for each recurrence, of which there are
            1 + sum(2 * layers + 1 for layers in blocks), one less without the first layer and one
            less without the last transition.

    `output_size` is the number of output features. h_n is (B, units): the states of all
    recurrences side by side, in the order of the signal. The stack has one direction; for two see
    `Bidirectional`.

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
        grad_clip_mode: GradClipMode = "per_step",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, growth=growth)
        check_bools(batch_first=batch_first)
        if not isinstance(blocks, Sequence) or not blocks:
            raise ValueError(f"blocks must be a sequence of layers per block, but is {blocks!r}")
        check_sizes(**{f"blocks[{i}]": layers for i, layers in enumerate(blocks)})
        sizes = {"first_features": first_features, "last_features": last_features}
        for name, size in sizes.items():  # None, 0, or what check_sizes takes: 1 or more
            if isinstance(size, bool) or size not in (None, 0):
                check_sizes(**{name: size})
        self.input_size, self.growth = input_size, growth
        self.batch_first, self.zoneout = batch_first, zoneout
        count = 1 + sum(2 * layers + 1 for layers in blocks) - list(sizes.values()).count(0)
        inits = iter(spread_init(recurrent_init, count))
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
        recorded = {"blocks": blocks, "recurrent_init": recurrent_init}
        self._arguments = {**vars(options), **sizes, **recorded}

        def unit(inputs: int, outputs: int) -> Unit:
            return Unit(inputs, outputs, options, next(inits))

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
        """The shape of h_n without the batch: (units,)."""
        return (sum(unit.hidden_size for unit in self._units()),)

    def _run_sequences(
        self, x: Tensor, sequences: Sequences, state: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        sizes = [unit.hidden_size for unit in self._units()]
        starts = iter([None] * len(sizes) if state is None else state.split(sizes, -1))
        ends = []

        def act(unit: nn.Module, x: Tensor) -> Tensor:
            x, h_n = unit(x, sequences, next(starts), direction)
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
