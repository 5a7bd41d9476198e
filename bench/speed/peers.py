"""Layers of other packages, as far as they are installed and run here.

haste-pytorch alone has an IndRNN, with tanh; each adapter says what its layer computes, and for
which version of the package it was written. Those that need a GPU have not been run on one by us.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

# From the number of features to a layer on the device and of the dtype that were asked for. It
# takes (B, T, features) and returns the same, or a tuple that begins with it.
Extra = Callable[[int], nn.Module]


class _Call(nn.Module):
    """A module whose forward is a function; its parameters are those of `parts`."""

    def __init__(self, function, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x):
        return self.function(x)


def _accelerated_scan(package, features):
    """h_t = gate_t * h_{t-1} + token_t, without a nonlinearity. accelerated-scan 0.3.

    Token and gate from one product each, the gate through a sigmoid. The scan wants (B, C, T),
    contiguous; the transpositions to it and back count, as they would for its user.
    """
    token, gate = nn.Linear(features, features), nn.Linear(features, features)

    def forward(x):
        tokens, gates = (part(x).transpose(1, 2).contiguous() for part in (token, gate))
        return package.scan(torch.sigmoid(gates), tokens).transpose(1, 2)

    return _Call(forward, token, gate)


def _hgrn(package, features):
    """h_t = f_t * h_{t-1} + (1 - f_t) * i_t: HGRN's recurrence, by chunks. fla-core 0.6.

    Qin et al. 2023, arXiv 2311.04823. i and f from one product each; output gate, norm and output
    projection, which the HGRN layer has too, are left out. chunk_hgrn takes the logarithm of f.
    """
    inputs, gate = nn.Linear(features, features), nn.Linear(features, features)

    def forward(x):
        logarithm = nn.functional.logsigmoid(gate(x))
        return package.chunk_hgrn(inputs(x) * (1 - logarithm.exp()), logarithm)[0]

    return _Call(forward, inputs, gate)


def _mamba(package, features):
    """A whole Mamba block: products in and out of twice the features, a short convolution, and a
    selective scan with 16 states a channel. mamba-ssm 2.3; Gu and Dao 2023, arXiv 2312.00752."""
    return package.Mamba(d_model=features)


def _flashrnn(package, features):
    """h_t = tanh(W x_t + b + R h_{t-1}), an Elman network of heads. flashrnn 1.0.

    Pöppel et al. 2024, arXiv 2412.07752. R has a block for each head of 64 channels, or of the
    largest power of two that divides the features: heads so small are its fastest case. It compiles
    CUDA code for each number of features and batch size.
    """
    head = min(64, features & -features)
    heads = features // head
    product = nn.Linear(features, features, bias=False)
    recurrent = nn.Linear(head, features, bias=True)  # rows of all heads, one below the other

    def forward(x):
        states, _ = package.flashrnn(
            product(x).view(*x.shape[:2], 1, heads, head),
            recurrent.weight.view(1, heads, head, head),
            recurrent.bias.view(1, heads, head),
            function="elman",
            backend="cuda_fused",
            dtype=str(x.dtype).removeprefix("torch."),
        )
        return states[0].flatten(-2)

    return _Call(forward, product, recurrent)


def _haste(package, features):
    """h_t = tanh(W x_t + b + u * h_{t-1}): an IndRNN with tanh, a thread a channel. haste-pytorch
    0.5."""
    return package.IndRNN(features, features, batch_first=True)


def _sru(package, features):
    """c_t = f_t * c_{t-1} + (1 - f_t) * (W x_t), and a highway gate to x_t. sru 2.6.

    Lei et al. 2018, arXiv 1709.02755. Three products. Takes and gives (T, B, features).
    """
    layer = package.SRU(features, features, num_layers=1)
    return _Call(lambda x: layer(x.transpose(0, 1))[0].transpose(0, 1), layer)


def _min_gru(package, features):
    """h_t = (1 - z_t) * h_{t-1} + z_t * g(W x_t), as a sum in log space. minGRU-pytorch 0.2.

    Feng et al. 2024, arXiv 2410.01201. Two products; PyTorch's own operators, on any device.
    """
    return package.minGRU(features)


class _Package(NamedTuple):
    module: str  # what is imported
    adapter: Callable
    needs_gpu: bool = True
    bfloat16: bool = True  # has kernels for it


PACKAGES = {
    "accelerated-scan": _Package("accelerated_scan.scalar", _accelerated_scan),
    "fla-core": _Package("fla.ops.hgrn", _hgrn),
    "mamba-ssm": _Package("mamba_ssm", _mamba),
    "flashrnn": _Package("flashrnn", _flashrnn),
    "haste-pytorch": _Package("haste_pytorch", _haste, bfloat16=False),
    "sru": _Package("sru", _sru, needs_gpu=False, bfloat16=False),
    "minGRU-pytorch": _Package("minGRU_pytorch", _min_gru, needs_gpu=False),
}


def extras(device: torch.device, dtype: torch.dtype) -> dict[str, Extra | str]:
    """For each package by its name: how to make a layer, or a word on why there is none.

    A layer of 64 features has made a training step before it is offered: what cannot be imported,
    compiled or run gives the first line of its error. Other sizes can still raise one of their own.
    """
    return {name: _offer(package, device, dtype) for name, package in PACKAGES.items()}


def _offer(package, device, dtype):
    if importlib.util.find_spec(package.module.partition(".")[0]) is None:
        return "not installed"
    if package.needs_gpu and device.type != "cuda":
        return "needs a GPU"
    if dtype == torch.bfloat16 and not package.bfloat16:
        return "no bfloat16"

    def make(features):
        return package.adapter(module, features).to(device, dtype)

    make.__doc__ = package.adapter.__doc__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(package.module)
            _try(make(64), torch.randn(2, 40, 64, device=device, dtype=dtype))
    except Exception as error:  # whatever other people's code may raise
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return make


def _try(layer, x):
    """One training step; raises an error where the output is not of the shape that is expected."""
    result = layer(x)
    result = result[0] if isinstance(result, tuple) else result
    if result.shape != x.shape:
        raise ValueError(f"the output is {tuple(result.shape)}, not {tuple(x.shape)}")
    torch.autograd.grad(result.sum(), list(layer.parameters()), allow_unused=True)
