"""Weights of other implementations, in and out: the authors' PyTorch networks, the TensorFlow cell,
Haste's layer, `torch.nn.RNN`.

A loader checks every name and shape first and then fills the module in place, in the module's dtype
and on its device; after an error the module is as it was.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .authors import (
    State,
    check_eps,
    check_nonlinearity,
    check_state,
    copy_into,
    load_authors,
    norms_of,
    to_authors,
)
from .cell import IndRNNCell
from .layers import IndRNN

__all__ = [
    "load_authors",
    "load_haste",
    "load_layers",
    "load_rnn",
    "load_tensorflow",
    "to_authors",
    "to_haste",
    "to_rnn",
    "to_tensorflow",
]
_TENSORFLOW = ("input_kernel", "recurrent_kernel", "bias")
_HASTE = ("kernel", "recurrent_scale", "bias")
_HASTE_NORM = (*_HASTE, "gamma")


def load_layers(module: IndRNN | IndRNNCell, layers: Sequence[tuple[Any, Any | None, Any]]) -> None:
    """Fills the layers of `module` with projections and recurrent vectors from anywhere.

    Args:
        module: an `IndRNN` without norm and zoneout, or an `IndRNNCell`.
        layers: for each layer, and within it for each direction, W (H, K) as `nn.Linear.weight`, b
            (H,) or None for zeros, u (H,).

    Raises:
        TypeError, ValueError: a part does not fit; a bias is not 0 and the module has none.
    """
    _check_plain(module)
    _fill(module, list(layers), [f"layers[{i}]" for i in range(len(layers))])


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
    _check_plain(module)
    largest = math.inf if recurrent_max_abs is None else recurrent_max_abs
    for name, bound in (("recurrent_min_abs", recurrent_min_abs), ("recurrent_max_abs", largest)):
        if not bound >= 0:
            raise ValueError(f"{name} must be at least 0, but is {bound}")
    layers = []
    for kernel, u, bias in _from_kernels(module, states, _TENSORFLOW):
        size = u.abs().clamp(min=recurrent_min_abs).clamp(max=largest)
        layers.append((kernel.T, bias, u.sign() * size))
    _fill(module, layers, [f"states[{i}]" for i in range(len(layers))])


def to_tensorflow(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """`input_kernel`, `recurrent_kernel` and `bias` of each layer (and direction)."""
    _check_plain(module)
    return _to_kernels(module, _TENSORFLOW)


def load_haste(
    module: IndRNN | IndRNNCell, states: State | Sequence[State], *, zoneout: float = 0.0
) -> None:
    """Fills `module` from Haste's `IndRNN` layers, h_t = tanh(x_t W + b + u * h_{t-1}), or its
    `LayerNormIndRNN` layers, h_t = tanh(gamma * normalized(x_t W) + b + u * h_{t-1}); with
    zoneout z at evaluation z * h_{t-1} + (1 - z) * tanh(...).

    Args:
        module: with nonlinearity "tanh" and without norm; for Haste's layer norm with norm="layer",
            norm_position="before" and bias=False, since Haste's b comes after its norm and is the
            bias of ours.
        states: for each layer (and direction) `kernel` (I, H), `recurrent_scale` (H,), `bias`
            (H,), and with layer norm `gamma` (2, H), of which Haste uses the first row; one alone
            for one layer.
        zoneout: the layer's; it must be the module's.

    Raises:
        TypeError, ValueError: a name is missing, unknown, or its shape wrong; zoneout differs; the
            module does not fit.

    Source: github.com/lmnt-com/haste.
    """
    has_norm = _has_haste_norm(module, zoneout)
    values = _from_kernels(module, states, _HASTE_NORM if has_norm else _HASTE)
    layers = [(kernel.T, None if has_norm else bias, u) for kernel, u, bias, *_ in values]
    _fill(module, layers, [f"states[{i}]" for i in range(len(layers))])
    if has_norm:
        for norm, (_, _, bias, gamma) in zip(_norms(module), values, strict=True):
            copy_into({"weight": gamma[0], "bias": bias}, norm)


def to_haste(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """`kernel`, `recurrent_scale` and `bias` of each layer (and direction), with layer norm also
    `gamma`, whose second row Haste does not use. Its zoneout is the module's.

    Raises, source: as `load_haste`, whose inverse it is.
    """
    zoneout = getattr(module, "zoneout", 0.0)
    has_norm = _has_haste_norm(module, zoneout)
    states = _to_kernels(module, _HASTE)
    if has_norm:
        for state, norm in zip(states, _norms(module), strict=True):
            state["bias"] = norm["bias"].clone()
            state["gamma"] = torch.stack([norm["weight"], torch.ones_like(norm["weight"])])
    return states


def load_rnn(module: IndRNN | IndRNNCell, rnn: nn.RNN | nn.RNNCell) -> None:
    """Fills `module` from PyTorch's own layer or cell, whose recurrence must be diagonal.

    Args:
        module: of the same sizes, nonlinearity and directions, without norm and zoneout.
        rnn: its two biases are added up.

    Raises:
        TypeError, ValueError: something differs, or a recurrent weight off the diagonal is not 0.
    """
    _check_plain(module)
    expected: type = nn.RNN if isinstance(module, IndRNN) else nn.RNNCell
    if not isinstance(rnn, expected):
        raise TypeError(f"rnn must be an nn.{expected.__name__}, but is {type(rnn).__name__}")
    check_nonlinearity(module, rnn.nonlinearity)
    for name in ("input_size", "hidden_size", "num_layers", "bidirectional"):
        ours, theirs = getattr(module, name, None), getattr(rnn, name, None)
        if ours != theirs:
            raise ValueError(f"rnn.{name} must be the module's {ours}, but is {theirs}")
    state, layers = rnn.state_dict(), []
    ends = _suffixes(module) if isinstance(rnn, nn.RNN) else [""]
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
    _fill(module, layers, [f"rnn{end}" for end in ends])


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
    _check_plain(module)
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
    for suffix, (weight, bias, u) in zip(_suffixes(module), _layers(module), strict=True):
        end = suffix if isinstance(rnn, nn.RNN) else ""
        target[f"weight_ih{end}"].copy_(weight)
        target[f"weight_hh{end}"].copy_(torch.diag(u))
        if bias is not None:
            target[f"bias_ih{end}"].copy_(bias)
            target[f"bias_hh{end}"].zero_()
    return rnn.train(module.training)


def _has_haste_norm(module: IndRNN | IndRNNCell, zoneout: float) -> bool:
    """Whether a module that fits one of Haste's two layers has layer norm; an error if it fits
    neither."""
    norms = norms_of(module).values()
    has_norm = bool(norms) and all(isinstance(norm, nn.LayerNorm) for norm in norms)
    _check_plain(module, zoneout, has_norm)
    check_nonlinearity(module, "tanh")
    check_eps(module)
    if has_norm and (module.norm_position != "before" or module.bias):
        raise ValueError(
            "module with layer norm must have norm_position='before' and bias=False, "
            f"but has norm_position={module.norm_position!r} and bias={module.bias}"
        )
    return has_norm


def _norms(module: IndRNN | IndRNNCell) -> list[dict[str, Tensor]]:
    """Weight and bias of the norm of each layer and direction, without gradients."""
    state = module.state_dict()
    return [
        {name: state[f"norm{end}.{name}"] for name in ("weight", "bias")}
        for end in _suffixes(module)
    ]


def _check_plain(module: nn.Module, zoneout: float = 0.0, takes_norm: bool = False) -> None:
    if not isinstance(module, IndRNN | IndRNNCell):
        raise TypeError(f"module must be an IndRNN or IndRNNCell, but is {type(module).__name__}")
    if not takes_norm and norms_of(module):
        raise ValueError(f"module must have no norm, but has norm={module.norm!r}")
    ours = getattr(module, "zoneout", 0.0)
    if ours != zoneout:
        raise ValueError(f"module's zoneout must be {zoneout}, but is {ours}")


def _suffixes(module: IndRNN | IndRNNCell) -> list[str]:
    names = [name for name, _ in module.named_parameters() if name.startswith("weight_hh")]
    return [name.removeprefix("weight_hh") for name in names]


def _layers(module: IndRNN | IndRNNCell) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Weight, bias and u of each layer and direction, in the order of h_n, without gradients."""
    state = module.state_dict()
    return [
        (state[f"weight_ih{end}"], state.get(f"bias_ih{end}"), state[f"weight_hh{end}"])
        for end in _suffixes(module)
    ]


def _fill(
    module: IndRNN | IndRNNCell, layers: Sequence[tuple[Any, Any | None, Any]], names: list[str]
) -> None:
    ours = _layers(module)
    if len(layers) != len(ours):
        raise ValueError(f"layers must be {len(ours)}, as in the module, but are {len(layers)}")
    checked = []
    for (weight, bias, u), (w, b, v), name in zip(layers, ours, names, strict=True):
        parts = {"weight": w, "u": v} | ({} if b is None else {"bias": b})
        given = {"weight": weight, "u": u}
        if b is not None:
            given["bias"] = torch.zeros_like(b) if bias is None else bias
        elif bias is not None and torch.as_tensor(bias).any():
            raise ValueError(f"{name}'s bias must be 0 for a module with bias=False, but is not")
        shapes = {key: tuple(value.shape) for key, value in parts.items()}
        checked.append((check_state(given, shapes, name), parts))
    for values, parts in checked:
        copy_into(values, parts)


def _from_kernels(
    module: IndRNN | IndRNNCell, states: State | Sequence[State], names: Sequence[str]
) -> list[list[Tensor]]:
    """For each layer and direction the values of `names`: a kernel (I, H), u (H,), a bias (H,) and,
    if there is a fourth name, (2, H)."""
    states = [states] if isinstance(states, Mapping) else list(states)
    ours = _layers(module)
    if len(states) != len(ours):
        raise ValueError(
            f"states must hold {len(ours)} dictionaries, one a layer and direction, "
            f"but hold {len(states)}"
        )
    layers = []
    for i, (state, (weight, _, u)) in enumerate(zip(states, ours, strict=True)):
        # TensorFlow's names: a scope with slashes before, ":0" behind.
        bare = {key.rsplit("/", 1)[-1].split(":")[0]: value for key, value in state.items()}
        if len(bare) < len(state):
            raise ValueError(f"states[{i}] must be of one layer, but has one name in two scopes")
        vector = tuple(u.shape)
        known = [tuple(weight.T.shape), vector, vector, (2, *vector)]
        shapes = dict(zip(names, known[: len(names)], strict=True))
        values = check_state(bare, shapes, f"states[{i}]")
        layers.append([values[name] for name in names])
    return layers


def _to_kernels(
    module: IndRNN | IndRNNCell, names: tuple[str, str, str]
) -> list[dict[str, Tensor]]:
    return [
        dict(
            zip(
                names,
                (
                    weight.T.clone(memory_format=torch.contiguous_format),
                    u.clone(),
                    torch.zeros_like(u) if bias is None else bias.clone(),
                ),
                strict=True,
            )
        )
        for weight, bias, u in _layers(module)
    ]
