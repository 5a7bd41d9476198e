"""Any stack in both directions."""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn

from .options import Direction, opposite
from .sequences import Sequences
from .stack import Stack


class Bidirectional(Stack):
    """A stack in both directions, side by side: the outputs are concatenated.

    Unlike `IndRNN(bidirectional=True)`, where each layer sees both directions of the one below, the
    two stacks meet at their outputs alone.

    Args:
        factory: makes one stack, without arguments; it is called twice.

    h_n holds the last states of the stack that runs forwards, then those of the one in reverse:
    concatenated along the first dimension, for `DenseIndRNN` along the units.

    Raises:
        TypeError, ValueError: factory is no function, does not make a stack, or makes one twice.

    Example:
        >>> rnn = Bidirectional(lambda: ResidualIndRNN(10, 20, num_blocks=1))
        >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 40), (6, 3, 20)
    """

    def __init__(self, factory: Callable[[], Stack]) -> None:
        super().__init__()
        if isinstance(factory, nn.Module) or not callable(factory):
            raise TypeError(
                "factory must be a function without arguments that makes a stack, as "
                f"lambda: IndRNN(10, 20), but is {type(factory).__name__}"
            )
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
        """The shape of h_n without the batch: that of one stack, with twice the states."""
        first, *rest = self.forwards.state_shape()
        return (2 * first, *rest)

    def _run_sequences(
        self, x: Tensor, sequences: Sequences, state: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        # States are (L, B, H) or (B, units): the first dimension, or the units, count twice.
        along = -1 if len(self.forwards.state_shape()) == 1 else 0
        halves = (None, None) if state is None else state.chunk(2, along)
        outputs, ends = [], []
        both = (self.forwards, direction), (self.backwards, opposite(direction))
        for (stack, towards), half in zip(both, halves, strict=True):
            y, h_n = stack._run_sequences(x, sequences, half, towards)
            outputs.append(y)
            ends.append(h_n)
        return sequences.concatenate(outputs), torch.cat(ends, along)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None
    ) -> NoReturn:
        """Not for a stream, whose end is not known.

        Args:
            x_t, state, time_step: as in `Stack.step`.

        Raises:
            ValueError: always.
        """
        raise ValueError("step needs one direction: a Bidirectional reads the sequence's end first")
