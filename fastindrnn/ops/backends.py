"""Which kernels serve a call: those for CPUs, those for GPUs, or none of them."""

import importlib.util
import os
from functools import cache

import torch


class backend:
    """Chooses the kernels for all calls of the process from here on; as a context manager, until
    its end.

    Args:
        name: "triton", "cpu", "reference" (plain PyTorch, any device), or None: by the tensor's
            device, which is the default. On CPU tensors "triton" needs Triton's interpreter
            (TRITON_INTERPRET=1 before it is imported).

    Raises:
        ValueError: for another name.

    Example:
        >>> rnn = fastindrnn.IndRNN(10, 20)
        >>> with fastindrnn.backend("reference"):
        ...     output, h_n = rnn(torch.randn(5, 3, 10))
    """

    current: str | None = None

    def __init__(self, name: str | None):
        if name not in (None, "triton", "cpu", "reference"):
            raise ValueError(
                f"backend must be 'triton', 'cpu', 'reference' or None, but is {name!r}"
            )
        self.previous = backend.current
        backend.current = name

    def __enter__(self) -> "backend":
        return self

    def __exit__(self, *exception) -> None:
        backend.current = self.previous


def check_backend(device: torch.device) -> None:
    """Raises a ValueError where the chosen kernels do not run on `device`."""
    name, kind = backend.current, device.type
    if name is None and kind in ("cpu", "cuda", "meta"):
        return
    if name == "cpu" and kind != "cpu":
        raise ValueError(f"backend 'cpu' needs CPU tensors, but they are on {device}")
    # Triton's own switch, which every version of it reads.
    if name == "triton" and kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "backend 'triton' needs tensors on a GPU, or TRITON_INTERPRET=1 before triton is "
            f"imported, but they are on {device}"
        )
    if name is None:
        raise ValueError(
            f"no kernels for device {device}; fastindrnn.backend('reference') runs anywhere"
        )


def kernels_of(tensor):
    """The module with the kernels for the tensor's device. A backward may run under another choice
    of backend than its forward, also under "reference": the device decides then too."""
    return _cpu() if tensor.is_cpu and backend.current != "triton" else _gpu()


# Each is imported when it is needed: it brings its compiler with it.
@cache
def _cpu():
    from ..kernels import cpu

    return cpu


@cache
def _gpu():
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            "the kernels for GPUs need Triton, which PyTorch for GPUs brings on Linux; "
            "pip install 'fastindrnn[gpu]' adds it; fastindrnn.backend('reference') does without"
        )
    from ..kernels import gpu

    return gpu


def cpu_threads() -> str:
    """The threads on which the compiled loops run: torch's, or a single one where the loops cannot
    use torch's."""
    return _cpu().threads()
