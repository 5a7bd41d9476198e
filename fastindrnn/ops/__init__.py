"""The kernels as operators of PyTorch: schema, fake tensors, autograd, autocast, vmap, second
derivatives and operation counts.

Nothing else in the package calls a kernel, and here nothing knows modules. Arguments are trusted;
`fastindrnn.functional` checks them. a and h are (B, T, N) or (total, N), x is (B, T, K) or
(total, K), u (N,), h0 and h_n (B, N).

A program that torch.export or AOTInductor saved names the operators: `import fastindrnn` before it
is loaded, or PyTorch does not find them.
"""

from . import projection, scan  # they define the operators
from .backends import backend, check_backend, cpu_threads

__all__ = ["backend", "check_backend", "cpu_threads", "projection", "scan"]
