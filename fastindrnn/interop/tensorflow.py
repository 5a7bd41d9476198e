"""The TensorFlow cell: github.com/batzner/indrnn."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..cell import IndRNNCell
from ..checks import check_number
from ..layers import IndRNN
from .layers import check_plain, fill, from_kernels, to_kernels
from .states import State

_NAMES = ("input_kernel", "recurrent_kernel", "bias")


def load_tensorflow(
    module: IndRNN | IndRNNCell,
    states: State | Sequence[State],
    *,
    recurrent_min_abs: float = 0.0,
    recurrent_max_abs: float | None = None,
) -> None:
    """Fills `module` from variables of the TensorFlow cell.

    The cell bounds u where it uses it, not where it keeps it: give the bounds that the cell was
    made with, and the module gets the u that the cell uses. The cell's first versions, whose
    argument is called `recurrent_max`, use `recurrent_kernel` clamped to [0, recurrent_max]: clamp
    it before.

    Args:
        module: without norm and zoneout, its nonlinearity the cell's activation, by default "relu".
        states: for each layer (and direction) `input_kernel` (I, H), `recurrent_kernel` (H,),
            `bias` (H,), in any scope and with or without ":0"; one alone for one layer.
        recurrent_min_abs: the cell's lower bound of |u|. A weight keeps its sign, and 0 stays 0.
        recurrent_max_abs: the cell's upper bound of |u|, applied after the lower one; None if it
            has none. With 1 and 3 for the two bounds, u = -5, -2, 0.1, 5 becomes -3, -2, 1, 3.

    Raises:
        TypeError, ValueError: a name is missing, unknown, or its shape wrong; a bound is negative.

    Source: github.com/batzner/indrnn.
    """
    check_plain(module)
    largest = math.inf if recurrent_max_abs is None else recurrent_max_abs
    for name, bound in (("recurrent_min_abs", recurrent_min_abs), ("recurrent_max_abs", largest)):
        check_number(name, bound)
        if not bound >= 0:
            raise ValueError(f"{name} must be at least 0, but is {bound}")
    layers = []
    for weight, u, bias in from_kernels(module, states, _NAMES):
        size = u.abs().clamp(min=recurrent_min_abs).clamp(max=largest)
        layers.append((weight, bias, u.sign() * size))
    fill(module, layers, [f"states[{i}]" for i in range(len(layers))])


def to_tensorflow(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """`input_kernel`, `recurrent_kernel` and `bias` of each layer (and direction).

    Args:
        module: as `load_tensorflow` takes it, whose inverse this is.

    Returns:
        For each layer and direction a dictionary, as `load_tensorflow` takes them.

    Raises:
        TypeError, ValueError: the module does not fit.

    Source: github.com/batzner/indrnn.
    """
    check_plain(module)
    return to_kernels(module, _NAMES)
