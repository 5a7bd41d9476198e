"""`python -m fastindrnn`: versions, device, backends, and a layer checked against the reference.
`python -m fastindrnn inspect CHECKPOINT`: what each neuron in a checkpoint remembers."""

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import IndRNN, __version__, backend
from .ops import cpu_threads

if TYPE_CHECKING:
    from .memory import LayerMemory


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _self_check(device: str) -> float:
    """The largest deviation of outputs and gradients from float64, of the largest value."""
    generator = torch.Generator().manual_seed(0)
    layer = IndRNN(24, 40, num_layers=2, bidirectional=True, grad_clip=10.0)
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.4)
    x = torch.randn(200, 3, 24, generator=generator)

    def results(layer: IndRNN, x: torch.Tensor) -> list[torch.Tensor]:
        output, h_n = layer(x)
        loss = output.square().mean() + h_n.mean()
        return [output, h_n, *torch.autograd.grad(loss, list(layer.parameters()))]

    actual = results(layer.to(device), x.to(device))
    with backend("reference"):
        expected = results(layer.double().cpu(), x.double())
    deviations = [
        (a.cpu().double() - e).abs().max() / e.abs().max()
        for a, e in zip(actual, expected, strict=True)
    ]
    return torch.stack(deviations).max().item()  # NaN if one is, which `max` of Python overlooks


def report() -> int:
    """Prints the report; 0 if every self-check passed, otherwise 1."""
    print(f"fastindrnn {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "numba", "numpy")))
    devices = {"cpu": f"{torch.get_num_threads()} threads; the loops run on {cpu_threads()}"}
    gpu = torch.cuda.is_available()
    if gpu:
        devices["cuda"] = torch.cuda.get_device_name()
    if torch.xpu.is_available():
        devices["xpu"] = f"{torch.xpu.get_device_name()}; backend 'reference' alone"
    print("devices: " + "; ".join(f"{name} ({text})" for name, text in devices.items()))
    print("backends: cpu, reference" + (", triton" if gpu and _has_triton() else ""))
    if not gpu:
        print("  triton: no GPU" + (" found" if _has_triton() else ", and triton is not installed"))
    has_passed = True
    for device in ["cpu", "cuda"] if gpu else ["cpu"]:
        start = time.perf_counter()
        error = _self_check(device)
        has_passed &= error < 1e-5  # not so where it is NaN
        print(
            f"self-check on {device}: outputs and gradients within {error:.1e} of float64, "
            f"{'passed' if error < 1e-5 else 'FAILED'} ({time.perf_counter() - start:.1f} s)"
        )
    return 0 if has_passed else 1


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def inspect(checkpoint: Path, out: Path) -> int:
    """Prints a line for each recurrence in a checkpoint and draws them; 2 if that cannot be."""
    from .memory import plot, read_memory  # whose packages the report does without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return _refuse(f"there is no file {checkpoint}")
    except Exception as error:  # whatever a file that is no checkpoint brings about
        reason = _first_line(error)
        if "weights_only" in str(error):  # PyTorch's text says how to load the file unsafely
            reason = "it holds more than tensors and plain values; save a state_dict()"
        return _refuse(f"{checkpoint} is no checkpoint that can be read: {reason}")
    layers = read_memory(content) if isinstance(content, dict) else []
    layers = [layer for layer in layers if layer.u.numel()]
    if not layers:
        return _refuse(f"{checkpoint} holds no recurrent vector (a tensor weight_hh...)")
    _print_table(layers)
    path = out / f"{checkpoint.stem}.memory.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        plot(layers, path=path)
    except ModuleNotFoundError as error:
        print(f"no plot: {_first_line(error)}", file=sys.stderr)
    except OSError as error:
        return _refuse(f"{path} cannot be written: {_first_line(error)}")
    else:
        print(f"plot: {path}")
    return 0


def _print_table(layers: "Sequence[LayerMemory]") -> None:
    width = max(5, *(len(layer.name) for layer in layers))
    print(
        f"{'layer':<{width}}  neurons    u min  median     max  |u|>=1  "
        "half-life median    max (steps)"
    )
    for layer in layers:
        u, lives = layer.quantiles, layer.half_life
        print(
            f"{layer.name:<{width}}  {len(layer.u):>7}  {u[0]:>7.4f} {u[0.5]:>7.4f} {u[1]:>7.4f}  "
            f"{layer.kept:>6.1%}  {lives.median().item():>16.4g} {lives.max().item():>6.4g}"
        )


def _refuse(text: str) -> int:
    print(f"python -m fastindrnn inspect: {text}", file=sys.stderr)
    return 2


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastindrnn",
        description="Without a command: versions, devices, backends, a self-check.",
    )
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("inspect", help="what each neuron in a checkpoint remembers")
    command.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a state dict, or a file with some"
    )
    command.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder of the plot (here)"
    )
    given = parser.parse_args(arguments)
    if given.command == "inspect":
        return inspect(given.checkpoint, given.out)
    return report()


if __name__ == "__main__":
    sys.exit(main())
