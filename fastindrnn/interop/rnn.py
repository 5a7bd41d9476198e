"""PyTorch's own `nn.RNN` and `nn.RNNCell` with a diagonal recurrence."""

from typing import Any

import torch
from torch import nn

from ..cell import IndRNNCell
from ..layers import IndRNN
from .layers import check_plain, fill, layers_of, suffixes
from .states import check_nonlinearity


def load_rnn(module: IndRNN | IndRNNCell, rnn: nn.RNN | nn.RNNCell) -> None:
    """Fills `module` from PyTorch's own layer or cell, whose recurrence must be diagonal.

    Args:
        module: of the same sizes, nonlinearity and directions, without norm and zoneout.
        rnn: its two biases are added up.

    Raises:
        TypeError, ValueError: something differs, or a recurrent weight off the diagonal is not 0.
    """
    check_plain(module)
    expected: type = nn.RNN if isinstance(module, IndRNN) else nn.RNNCell
    if not isinstance(rnn, expected):
        raise TypeError(f"rnn must be an nn.{expected.__name__}, but is {type(rnn).__name__}")
    check_nonlinearity(module, rnn.nonlinearity)
    for name in ("input_size", "hidden_size", "num_layers", "bidirectional"):
        ours, theirs = getattr(module, name, None), getattr(rnn, name, None)
        if ours != theirs:
            raise ValueError(f"rnn.{name} must be the module's {ours}, but is {theirs}")
    state, layers = rnn.state_dict(), []
    ends = suffixes(module) if isinstance(rnn, nn.RNN) else [""]
    for end in ends:
        weight_hh = state[f"weight_hh{end}"]
        u = weight_hh.diagonal()
        others = torch.count_nonzero(weight_hh - torch.diag(u)).item()
        if others:
            raise ValueError(
                f"weight_hh{end} must be diagonal, but {others} of its other entries are not 0"
            )
        bias = state[f"bias_ih{end}"] + state[f"bias_hh{end}"] if rnn.bias else None
        layers.append((state[f"weight_ih{end}"], bias, u))
    fill(module, layers, [f"rnn{end}" for end in ends])


def to_rnn(module: IndRNN | IndRNNCell) -> nn.RNN | nn.RNNCell:
    """PyTorch's own layer (or cell) with the same outputs, its recurrent matrices diagonal.

    It has no gradient clipping, and in training its dropout draws a new mask at every step.

    Args:
        module: with nonlinearity "relu" or "tanh", without zoneout and norm (`fold_norms`).

    Returns:
        An `nn.RNN` for an `IndRNN`, an `nn.RNNCell` for an `IndRNNCell`, in the module's dtype, on
        its device and in its mode.

    Raises:
        TypeError, ValueError: the module does not fit.

    Example:
        >>> rnn = to_rnn(IndRNN(10, 20, num_layers=2))
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
    """
    check_plain(module)
    check_nonlinearity(module, "relu", "tanh")
    u = module.weight_hh_l0
    options: dict[str, Any] = {"bias": module.bias, "nonlinearity": module.nonlinearity}
    options |= {"device": u.device, "dtype": u.dtype}
    sizes = module.input_size, module.hidden_size
    rnn: nn.RNN | nn.RNNCell
    if isinstance(module, IndRNN):
        options |= {"batch_first": module.batch_first, "dropout": module.dropout}
        if module.num_layers == 1:
            options["dropout"] = 0.0
        rnn = nn.RNN(*sizes, module.num_layers, bidirectional=module.bidirectional, **options)
    else:
        rnn = nn.RNNCell(*sizes, **options)
    target = rnn.state_dict()
    for suffix, (weight, bias, u) in zip(suffixes(module), layers_of(module), strict=True):
        end = suffix if isinstance(rnn, nn.RNN) else ""
        target[f"weight_ih{end}"].copy_(weight)
        target[f"weight_hh{end}"].copy_(torch.diag(u))
        if bias is not None:
            target[f"bias_ih{end}"].copy_(bias)
            target[f"bias_hh{end}"].zero_()
    return rnn.train(module.training)
