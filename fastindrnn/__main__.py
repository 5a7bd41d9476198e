"""`python -m fastindrnn`: versions, device, backends, and a layer checked against the reference."""

import importlib.metadata
import importlib.util
import platform
import sys
import time

import torch

from . import IndRNN, __version__, backend


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "xpu" if torch.xpu.is_available() else None


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
    return max(
        ((a.cpu().double() - e).abs().max() / e.abs().max()).item()
        for a, e in zip(actual, expected, strict=True)
    )


def main() -> int:
    """Prints the report; 0 if every self-check passed, otherwise 1."""
    print(f"fastindrnn {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "numba", "numpy")))
    gpu = _gpu()
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    if gpu is not None:
        devices[gpu] = getattr(torch, gpu).get_device_name()
    print("devices: " + "; ".join(f"{name} ({text})" for name, text in devices.items()))
    print("backends: cpu, reference" + (", triton" if gpu and _has_triton() else ""))
    if not gpu:
        print("  triton: no GPU" + (" found" if _has_triton() else ", and triton is not installed"))
    worst = 0.0
    for device in devices:
        start = time.perf_counter()
        error = _self_check(device)
        worst = max(worst, error)
        print(
            f"self-check on {device}: outputs and gradients within {error:.1e} of float64, "
            f"{'passed' if error < 1e-5 else 'FAILED'} ({time.perf_counter() - start:.1f} s)"
        )
    return 0 if worst < 1e-5 else 1


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


if __name__ == "__main__":
    sys.exit(main())
