"""The door between kernels and PyTorch: each kernel as an operator with schema, fake tensors,
autograd and autocast.

    fastindrnn::scan           the recurrence alone
    fastindrnn::scan_backward  its gradient, differentiable in turn (and so to any order)
    fastindrnn::indrnn         projection and recurrence; saves x and h, never the pre-activation

Arguments are trusted here; `fastindrnn.functional` checks them. Letters as in the design notes: a,
h (B, T, N) or (total, N), x (B, T, K) or (total, K), u (N,), h0 and h_n (B, N).
"""

import math

import torch

from . import vmap
from .second_order import second_gradients

_SEQUENCES = "Tensor? lengths, Tensor? cu_seqlens, Tensor? resets, str nonlinearity, bool reverse"
_CLIP = "float? grad_clip, str grad_clip_mode"
_library = torch.library.Library("fastindrnn", "DEF")
for _schema in (
    f"scan(Tensor a, Tensor u, Tensor? h0, {_SEQUENCES}, {_CLIP}) -> (Tensor, Tensor)",
    "scan_backward(Tensor grad_h, Tensor? grad_h_n, Tensor h, Tensor u, Tensor? h0, "
    f"{_SEQUENCES}, float? grad_clip) -> (Tensor, Tensor, Tensor, Tensor)",
    f"indrnn(Tensor x, Tensor weight, Tensor? bias, Tensor u, Tensor? h0, {_SEQUENCES}, {_CLIP})"
    " -> (Tensor, Tensor)",
):
    _library.define(_schema, tags=[torch.Tag.pt2_compliant_tag])


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
    if name == "cpu" and kind != "cpu":
        raise ValueError(f"backend 'cpu' needs CPU tensors, but they are on {device}")
    if name == "triton" and kind == "cpu":
        from triton import knobs

        if not knobs.runtime.interpret:
            raise ValueError(
                "backend 'triton' needs tensors on a GPU, or TRITON_INTERPRET=1 before triton is "
                f"imported, but they are on {device}"
            )
    if name is None and kind not in ("cpu", "cuda", "meta"):
        raise ValueError(
            f"no kernels for device {device}; fastindrnn.backend('reference') runs anywhere"
        )


def _kernels(tensor):
    """Those of the tensor's device, also in a backward that runs under another choice."""
    if backend.current == "triton" or tensor.device.type != "cpu":
        from .kernels import launch

        return launch
    from .kernels import cpu

    return cpu


def _channels_contiguous(x):
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def _batch(h, cu_seqlens):
    return h.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _scan(a, u, h0, lengths, cu_seqlens, resets, nonlinearity, reverse, grad_clip, grad_clip_mode):
    a = _channels_contiguous(a)
    h = torch.empty_like(a)
    return h, _run_forward(a, u, h0, h, lengths, cu_seqlens, resets, nonlinearity, reverse)


def _run_forward(a, u, h0, h, lengths, cu_seqlens, resets, nonlinearity, reverse, **options):
    return _kernels(a).scan_forward(
        a,
        u.contiguous(),
        None if h0 is None else h0.contiguous(),
        h,
        nonlinearity=nonlinearity,
        reverse=reverse,
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        resets=resets,
        **options,
    )


def _scan_fake(a, u, h0, lengths, cu_seqlens, resets, *options):
    return torch.empty_like(_channels_contiguous(a)), a.new_empty(
        _batch(a, cu_seqlens), a.shape[-1]
    )


def _scan_backward(
    grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, nonlinearity, reverse, grad_clip
):
    return _kernels(h).scan_backward(
        _channels_contiguous(grad_h),
        None if grad_h_n is None else grad_h_n.contiguous(),
        _channels_contiguous(h),
        u.contiguous(),
        None if h0 is None else h0.contiguous(),
        nonlinearity=nonlinearity,
        reverse=reverse,
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        resets=resets,
        grad_clip=grad_clip,
    )


def _scan_backward_fake(grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, *options):
    dtype = h.dtype if h0 is None else h0.dtype
    grad_h0 = h.new_empty(_batch(h, cu_seqlens), h.shape[-1], dtype=dtype)
    grad_b = h.new_empty(h.shape[-1])
    return torch.empty_like(_channels_contiguous(h)), torch.empty_like(u), grad_h0, grad_b


def _indrnn(x, weight, bias, u, h0, lengths, cu_seqlens, resets, nonlinearity, reverse, *clip):
    kernels, options = _kernels(x), {}
    if kernels.ADDS_BIAS:
        options["bias"], bias = bias, None
    a = _unflatten(torch.nn.functional.linear(_flatten(x, x), weight, bias), x)
    sequences = lengths, cu_seqlens, resets
    return a, _run_forward(a, u, h0, a, *sequences, nonlinearity, reverse, **options)


def _indrnn_fake(x, weight, bias, u, h0, lengths, cu_seqlens, *options):
    h = _unflatten(x.new_empty(math.prod(x.shape[:-1]), weight.shape[0]), x)
    return h, x.new_empty(_batch(x, cu_seqlens), weight.shape[0])


def _is_time_first(x):
    return x.dim() == 3 and x.stride(0) < x.stride(1)


def _flatten(x, like):
    """(B, T, K) to (B*T, K) in the order of `like` in memory: a view where x has that order too."""
    return (x.transpose(0, 1) if _is_time_first(like) else x).reshape(-1, x.shape[-1])


def _unflatten(rows, like):
    """The inverse of `_flatten`."""
    if like.dim() == 2:
        return rows
    B, T = like.shape[:2]
    if _is_time_first(like):
        return rows.view(T, B, rows.shape[-1]).transpose(0, 1)
    return rows.view(B, T, rows.shape[-1])


def _indrnn_autocast(device_type):
    """The product and its bias in autocast's dtype; u and states as they are: rounding u to
    bfloat16 would end its memory after some hundred steps."""

    def call(x, weight, bias, u, h0, *options):
        # As everywhere, autocast leaves float64 alone.
        dtype = x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return torch.ops.fastindrnn.indrnn(x.to(dtype), weight.to(dtype), bias, u, h0, *options)

    return call


def _first_gradients(saved, options, grad_h, grad_h_n):
    """The gradients of a, u and h0 from those of h and h_n, clipped as asked."""
    h, u, h0, lengths, cu_seqlens, resets = saved
    nonlinearity, reverse, grad_clip, mode = options
    if grad_h is None:
        grad_h = h.new_zeros(*h.shape[:-2], 1, h.shape[-1]).expand_as(h)  # one row for all steps
    grads = torch.ops.fastindrnn.scan_backward(
        grad_h,
        grad_h_n,
        h,
        u,
        h0,
        lengths,
        cu_seqlens,
        resets,
        nonlinearity,
        reverse,
        grad_clip if mode == "message" else None,
    )
    if grad_clip is not None and mode == "result":
        grad_a, grad_u, grad_h0 = (grad.clamp(-grad_clip, grad_clip) for grad in grads[:3])
        grads = grad_a, grad_u, grad_h0, grad_a.sum(tuple(range(grad_a.dim() - 1)))
    grad_a, grad_u, grad_h0, grad_b = grads
    return grad_a, grad_u, None if h0 is None else grad_h0, grad_b


def _scan_setup(ctx, inputs, output):
    _, u, h0, lengths, cu_seqlens, resets, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], u, h0, lengths, cu_seqlens, resets)


def _scan_gradient(ctx, grad_h, grad_h_n):
    *grads, _ = _first_gradients(ctx.saved_tensors, ctx.options, grad_h, grad_h_n)
    return *grads, *[None] * 7


def _indrnn_setup(ctx, inputs, output):
    x, weight, _, u, h0, lengths, cu_seqlens, resets, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], u, h0, lengths, cu_seqlens, resets, x, weight)


def _indrnn_gradient(ctx, grad_h, grad_h_n):
    *saved, x, weight = ctx.saved_tensors
    grad_a, grad_u, grad_h0, grad_b = _first_gradients(saved, ctx.options, grad_h, grad_h_n)
    rows = _flatten(grad_a, grad_a)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = _unflatten(rows @ weight, grad_a) if needs_x else None
    grad_weight = rows.t() @ _flatten(x, grad_a) if needs_weight else None
    grad_bias = grad_b if needs_bias else None
    return grad_x, grad_weight, grad_bias, grad_u, grad_h0, *[None] * 7


def _scan_backward_setup(ctx, inputs, output):
    grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_h, grad_h_n, h, u, h0, lengths, cu_seqlens, resets, output[0])


torch.library.register_fake("fastindrnn::scan", _scan_fake, lib=_library)
torch.library.register_fake("fastindrnn::scan_backward", _scan_backward_fake, lib=_library)
torch.library.register_fake("fastindrnn::indrnn", _indrnn_fake, lib=_library)
for _device in ("CPU", "CUDA"):
    _library.impl("scan", _scan, _device)
    _library.impl("scan_backward", _scan_backward, _device)
    _library.impl("indrnn", _indrnn, _device)
    _library.impl("indrnn", _indrnn_autocast(_device.lower()), f"Autocast{_device}")
for _name in ("scan", "scan_backward", "indrnn"):
    torch.library.register_vmap(f"fastindrnn::{_name}", getattr(vmap, _name), lib=_library)
torch.library.register_autograd(
    "fastindrnn::scan", _scan_gradient, setup_context=_scan_setup, lib=_library
)
torch.library.register_autograd(
    "fastindrnn::scan_backward", second_gradients, setup_context=_scan_backward_setup, lib=_library
)
torch.library.register_autograd(
    "fastindrnn::indrnn", _indrnn_gradient, setup_context=_indrnn_setup, lib=_library
)
