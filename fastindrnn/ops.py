"""The door between kernels and PyTorch: each kernel as an operator with schema, fake tensors,
autograd and autocast.

    fastindrnn::scan           the recurrence alone
    fastindrnn::scan_backward  its gradient, differentiable in turn (and so to any order)
    fastindrnn::clip_gradient  the identity, whose gradient is clipped

and, in `projected`, those with a projection. A program that torch.export or AOTInductor saved names
them: `import fastindrnn` before it is loaded, or PyTorch does not find them.

Arguments are trusted here; `fastindrnn.functional` checks them. Letters as in the design notes:
a, h (B, T, N) or (total, N), x (B, T, K) or (total, K), u (N,), h0 and h_n (B, N).
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache, partial

import torch

from . import vmap
from .second_order import halves, second_gradients

SEQUENCES = "Tensor? lengths, Tensor? cu_seqlens, Tensor? resets, str nonlinearity, bool reverse"
_SEQUENCES = ("lengths", "cu_seqlens", "resets", "nonlinearity", "reverse")
_library = torch.library.Library("fastindrnn", "DEF")


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


def refuse_gradient_transforms(*tensors: torch.Tensor | None) -> None:
    """Raises a NotImplementedError where torch.func.grad or its like is to differentiate by one of
    the tensors, which PyTorch cannot do with operators written in Python, in words of its own."""
    if torch.compiler.is_compiling() or not _has_transforms() or not torch.is_grad_enabled():
        return
    levels = torch._C._functorch.get_interpreter_stack() or ()
    has_gradient = any(level.key() == torch._C._functorch.TransformType.Grad for level in levels)
    if has_gradient and any(x is not None and _is_differentiated(x) for x in tensors):
        raise NotImplementedError(
            "IndRNN's kernels cannot be differentiated by torch.func (grad, vjp, jacrev): take "
            "torch.autograd.grad, for many models at once around torch.vmap, or the backend "
            "'reference' (with fastindrnn.backend('reference'): ...)"
        )


def _is_differentiated(x: torch.Tensor) -> bool:
    """At any of the levels of transforms around x."""
    while not x.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def kernels_of(tensor):
    """Those of the tensor's device, also in a backward that runs under another choice."""
    return _cpu() if tensor.is_cpu and backend.current != "triton" else _triton()


# Each is imported when it is needed: it brings its compiler with it.
@cache
def _cpu():
    from .kernels import cpu

    return cpu


@cache
def _triton():
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            "the kernels for GPUs need Triton, which PyTorch for GPUs brings on Linux; "
            "pip install 'fastindrnn[gpu]' adds it; fastindrnn.backend('reference') does without"
        )
    from .kernels import gpu

    return gpu


def cpu_threads() -> str:
    """On which threads the compiled loops run: torch's, or one where they are not to be had."""
    return _cpu().threads()


def register(name: str, schema: str, run: Callable, fake: Callable, vmap: Callable) -> None:
    """A new operator: what it computes, the form of its results, and what it is over a batch of
    models."""
    _library.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    torch.library.register_fake(f"fastindrnn::{name}", fake, lib=_library)
    torch.library.register_vmap(f"fastindrnn::{name}", vmap, lib=_library)
    for device in ("CPU", "CUDA"):
        _library.impl(name, run, device)


def register_autograd(name: str, setup: Callable, gradient: Callable) -> None:
    """Its derivative."""
    torch.library.register_autograd(
        f"fastindrnn::{name}", gradient, setup_context=setup, lib=_library
    )


def register_autocast(name: str, call: Callable) -> None:
    """What `call(operator, dtype, *arguments)` makes of a call under autocast."""
    operator = getattr(torch.ops.fastindrnn, name)

    def under_autocast(device, x, *arguments):
        # As everywhere, autocast leaves float64 alone.
        dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return call(operator, dtype, x, *arguments)

    for device in ("CPU", "CUDA"):
        _library.impl(name, partial(under_autocast, device.lower()), f"Autocast{device}")


def past_the_dispatcher(operator, run: Callable) -> Callable:
    """`operator`, or where nothing of PyTorch wants to see it what it runs, `run`: the way through
    the dispatcher takes an operator written in Python some 20 us, as long as a step of a layer."""

    def call(x, *arguments):
        """The operator, past the dispatcher where it can be."""
        if is_watched(x, *arguments[:4]):
            return operator(x, *arguments)
        return run(x, *arguments)

    return call


_PLAIN = (torch.Tensor, torch.nn.Parameter, type(None))
# Private to PyTorch: where it has them no more, everything is watched.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_has_transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_is_profiled = getattr(torch._C._autograd, "_profiler_enabled", lambda: True)


def is_watched(x, *others):
    """By a compiler or tracer, autograd, autocast, a profiler, a mode, vmap and its like, or a
    subclass of Tensor; on other devices there is no kernel to run."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not (x.is_cpu or x.is_cuda):
        return True
    if torch.jit.is_tracing() or _modes() or _has_transforms() or _is_profiled():
        return True
    for y in (x, *others):
        if type(y) not in _PLAIN or (y is not None and y.is_neg()):
            return True
    return torch.is_autocast_enabled(x.device.type)


def options_of(arguments):
    """A kernel's options by name."""
    return dict(zip(_SEQUENCES, arguments, strict=True))


def channels_contiguous(x):
    """x, or a copy whose channels are adjacent and whose rows do not overlap."""
    N = x.shape[-1]
    is_adjacent = N <= 1 or x.stride(-1) == 1
    is_apart = all(stride == 0 or stride >= N for stride in x.stride()[:-1])
    return x if is_adjacent and is_apart else x.contiguous()


def is_time_first(x):
    """Whether a padded batch lies in memory step by step."""
    return x.dim() == 3 and x.stride(0) < x.stride(1)


def rows_like(x, *sizes):
    """Memory for rows in x's order of batch and time: of N channels, or L times of N."""
    *layers, N = sizes
    if is_time_first(x):
        return x.new_empty(*layers, x.shape[1], x.shape[0], N).transpose(-3, -2)
    return x.new_empty(*layers, *x.shape[:-1], N)


def contiguous(x):
    """A copy if need be of a tensor, or None."""
    return None if x is None else x.contiguous()


def batch(rows, cu_seqlens):
    """B."""
    return rows.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _scan(a, u, h0, *options):
    a = channels_contiguous(a)
    h = rows_like(a, a.shape[-1])
    h0 = contiguous(h0)
    return h, kernels_of(a).scan_forward(a, u.contiguous(), h0, h, **options_of(options[:5]))


def _scan_fake(a, u, h0, lengths, cu_seqlens, *options):
    return rows_like(channels_contiguous(a), a.shape[-1]), a.new_empty(
        batch(a, cu_seqlens), a.shape[-1]
    )


def _scan_backward(grad_h, grad_h_n, h, u, h0, *options):
    *sequences, reverse, bidirectional, grad_clip = options

    def run(reverse, grad_h, grad_h_n, h, u, h0, **more):
        return kernels_of(h).scan_backward(
            channels_contiguous(grad_h),
            contiguous(grad_h_n),
            channels_contiguous(h),
            u.contiguous(),
            contiguous(h0),
            **options_of((*sequences, reverse)),
            grad_clip=grad_clip,
            **more,
        )

    if not bidirectional:
        return run(reverse, grad_h, grad_h_n, h, u, h0)
    grad_a = torch.empty_like(channels_contiguous(h))
    first, second = halves(grad_h, grad_h_n, h, u, h0, grad_a)
    grads = [
        run(direction, *tensors, grad_a=half)
        for (*tensors, half), direction in ((first, reverse), (second, not reverse))
    ]
    return grad_a, *(torch.cat(pair, -1) for pair in zip(grads[0][1:], grads[1][1:], strict=True))


def _scan_backward_fake(grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, *options):
    dtype = h.dtype if h0 is None else h0.dtype
    grad_h0 = h.new_empty(batch(h, cu_seqlens), h.shape[-1], dtype=dtype)
    grad_b = h.new_empty(h.shape[-1])
    return torch.empty_like(channels_contiguous(h)), torch.empty_like(u), grad_h0, grad_b


def first_gradients(saved, options, grad_h, grad_h_n):
    """The gradients of a, u and h0 from those of h and h_n, and that of b."""
    h, u, h0, *sequences = saved
    if grad_h is None:
        grad_h = h.new_zeros(*h.shape[:-2], 1, h.shape[-1]).expand_as(h)  # one row for all steps
    grads = torch.ops.fastindrnn.scan_backward(grad_h, grad_h_n, h, u, h0, *sequences, *options)
    grad_a, grad_u, grad_h0, grad_b = grads
    return grad_a, grad_u, None if h0 is None else grad_h0, grad_b


def _clip_gradient(x, limit):
    return x.clone()  # an operator may not return its input


def _clip_gradient_setup(ctx, inputs, output):
    ctx.limit = inputs[1]


def _clip_gradient_gradient(ctx, grad):
    return grad.clamp(-ctx.limit, ctx.limit), None


def _scan_setup(ctx, inputs, output):
    _, u, h0, lengths, cu_seqlens, resets, nonlinearity, reverse, grad_clip = inputs
    ctx.options = nonlinearity, reverse, False, grad_clip
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], u, h0, lengths, cu_seqlens, resets)


def _scan_gradient(ctx, grad_h, grad_h_n):
    *grads, _ = first_gradients(ctx.saved_tensors, ctx.options, grad_h, grad_h_n)
    return *grads, *[None] * 6


def _scan_backward_setup(ctx, inputs, output):
    grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, output[0])


register(
    "scan",
    f"(Tensor a, Tensor u, Tensor? h0, {SEQUENCES}, float? grad_clip) -> (Tensor, Tensor)",
    _scan,
    _scan_fake,
    vmap.scan,
)
register(
    "scan_backward",
    "(Tensor grad_h, Tensor? grad_h_n, Tensor h, Tensor u, Tensor? h0, "
    f"{SEQUENCES}, bool bidirectional, float? grad_clip) -> (Tensor, Tensor, Tensor, Tensor)",
    _scan_backward,
    _scan_backward_fake,
    vmap.scan_backward,
)
register(
    "clip_gradient",
    "(Tensor x, float limit) -> Tensor",
    _clip_gradient,
    _clip_gradient,
    vmap.clip_gradient,
)
register_autograd("clip_gradient", _clip_gradient_setup, _clip_gradient_gradient)
register_autograd("scan", _scan_setup, _scan_gradient)
register_autograd("scan_backward", _scan_backward_setup, second_gradients)
scan = past_the_dispatcher(torch.ops.fastindrnn.scan.default, _scan)
