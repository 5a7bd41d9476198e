"""What a launch on a GPU can choose, as `python -m bench tune` sweeps it.

A choice is a dict of words and numbers. A further kind of kernel is a further line in OPERATIONS.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from fastindrnn.kernels.gpu import model


class Operation(NamedTuple):
    """Something that a launch does in several ways.

    choices(B, T, N, dtype, device): the model's pick, and a list of others.
    prepare(B, T, N, dtype, device): makes tensors, and returns a function of a choice that
    computes on them and returns all that it computed.
    """

    choices: Callable
    prepare: Callable


def scan_choices(B, T, N, dtype, device, streams):
    """What differs from the pick by a factor in one thing, or has one chunk."""
    gpu = model_of(device)
    vector = math.gcd(16, N * dtype.itemsize)
    pick = model.plan(gpu, B, T, N, dtype.itemsize, streams, vector)._asdict()
    others = [{**pick, "chunks": 1}, {**pick, "stages": 1}]
    changes = {"chunks": (0.25, 0.5, 2, 4), "rows": (0.5, 2), "stages": (0.5, 2)}
    for name, factors in (changes | {"block_n": (0.5, 2)}).items():
        others += [{**pick, name: int(pick[name] * factor)} for factor in factors]

    def possible(choice):
        return (
            choice["chunks"] >= 1
            and 1 <= choice["rows"] <= 32
            and choice["stages"] >= 1
            and choice["block_n"] >= gpu.lanes
            and choice["chunks"] * choice["rows"] <= T
        )

    return pick, distinct(filter(possible, others), pick)


def scan_forward(B, T, N, dtype, device):
    from fastindrnn.kernels import gpu  # here, because Triton is for Linux

    a, u = torch.randn(B, T, N, device=device, dtype=dtype), torch.rand(N, device=device)
    h = torch.empty_like(a)
    return lambda choice: (gpu.scan_forward(a, u, None, h, **choice), h)


def scan_backward(B, T, N, dtype, device):
    from fastindrnn.kernels import gpu

    grad_h, a = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    u, h = torch.rand(N, device=device), torch.relu(a)
    return lambda choice: gpu.scan_backward(grad_h, None, h, u, None, **choice)


def layer_choices(B, T, N, dtype, device):
    """Split into other numbers of slices; fused in other tiles, each chained and not."""
    gpu, aligned = model_of(device), N * dtype.itemsize % 16 == 0
    plain = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    strategy = "split" if plain or gpu.family is None else "auto"
    picked = model.choose(gpu, strategy, B, T, N, N, dtype.itemsize, False, aligned, True, B)
    others = [{"slices": 1}]
    others += [{"slices": min(int(n * picked.slices), B)} for n in (0.5, 2, 4)]
    for tile in tiles(gpu.family, N, dtype.itemsize, aligned, few=plain):
        others += [fused_choice(tile, chained) for chained in {False, tile.block_t < T}]
    pick = {"slices": picked.slices}
    if picked.tile is not None:
        pick = fused_choice(picked.tile, picked.chained)
    return pick, distinct((c for c in others if c != {"slices": 0}), pick)


def tiles(family, N, itemsize, aligned, few):
    """The model's tile, and what differs from it by a factor of 2 in one thing."""
    if family is None:
        return []
    found = [model.pick_tile(family, N, N, itemsize, False, aligned)]
    if not few:
        for name, factor in itertools.product(("block_n", "block_t", "warps"), (0.5, 2)):
            changed = {name: int(getattr(found[0], name) * factor)}
            found.append(found[0]._replace(**changed))
    return found


def fused_choice(tile, chained):
    return {"chained": chained, **tile._asdict()}


def layer_forward(B, T, N, dtype, device):
    from fastindrnn.kernels import gpu

    x, h = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    weight = torch.randn(N, N, device=device, dtype=dtype) / N**0.5
    bias, u = torch.randn(N, device=device, dtype=dtype), torch.rand(N, device=device)

    def compute(choice):
        if "slices" in choice:
            made = model.Choice(None, False, choice["slices"])
        else:
            tile = {name: choice[name] for name in model.Tile._fields}
            made = model.Choice(model.Tile(**tile), choice["chained"], 1)
        return gpu.indrnn_forward(x, weight, bias, u, None, h, choice=made), h

    return compute


def model_of(device):
    """What the launch model knows of a device."""
    from fastindrnn.kernels.gpu.devices import device_of

    return device_of(torch.empty(0, device=device))


def distinct(choices, pick):
    """Each once, without the pick."""
    return [c for c in {label(c): c for c in choices}.values() if c != pick]


def label(choice):
    return ", ".join(f"{name} {value}" for name, value in choice.items())


OPERATIONS = {
    "scan forward": Operation(partial(scan_choices, streams=1), scan_forward),
    "scan backward": Operation(partial(scan_choices, streams=2), scan_backward),
    "layer forward": Operation(layer_choices, layer_forward),
}
