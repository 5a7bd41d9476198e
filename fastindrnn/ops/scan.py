"""The operators without a product.

    fastindrnn::scan           the recurrence alone
    fastindrnn::scan_backward  its gradient, differentiable in turn (and so to any order)
    fastindrnn::clip_gradient  the identity, whose gradient is clipped

The kernels know one direction at a time here. For "both" they are called once for each half of the
channels: views of the same tensors, so that nothing is copied.
"""

import torch

from ..options import Extents
from . import calls, vmap
from .backends import kernels_of
from .layout import channels_contiguous, contiguous, empty_like_input, halves, joined
from .registration import NO_GRADIENTS, Operator, library
from .second_order import second_gradients


def _scan(a, u, h0, extents, recurrence):
    a = channels_contiguous(a)
    h = empty_like_input(a, a.shape[-1])

    def run(a, u, h0, h, *, reverse):
        return kernels_of(a).scan_forward(
            a,
            u.contiguous(),
            contiguous(h0),
            h,
            nonlinearity=recurrence.nonlinearity,
            reverse=reverse,
            **extents.by_name(),
        )

    if recurrence.direction != "both":
        return h, run(a, u, h0, h, reverse=recurrence.direction == "reverse")
    first, second = halves(a, u, h0, h)
    return h, torch.cat((run(*first, reverse=False), run(*second, reverse=True)), -1)


def _scan_fake(a, u, h0, extents, recurrence):
    N = a.shape[-1]
    h_n = a.new_empty(extents.batch_size(a), N)
    return empty_like_input(channels_contiguous(a), N), h_n


def _scan_backward(grad_h, grad_h_n, h, u, h0, extents, recurrence):
    def run(grad_h, grad_h_n, h, u, h0, grad_a, *, reverse):
        return kernels_of(h).scan_backward(
            channels_contiguous(grad_h),
            contiguous(grad_h_n),
            channels_contiguous(h),
            u.contiguous(),
            contiguous(h0),
            grad_a=grad_a,
            nonlinearity=recurrence.nonlinearity,
            reverse=reverse,
            grad_clip=recurrence.grad_clip,
            **extents.by_name(),
        )

    if recurrence.direction != "both":
        is_reverse = recurrence.direction == "reverse"
        return run(grad_h, grad_h_n, h, u, h0, grad_a=None, reverse=is_reverse)
    grad_a = torch.empty_like(channels_contiguous(h))
    first, second = halves(grad_h, grad_h_n, h, u, h0, grad_a)
    _, *first_grads = run(*first, reverse=False)
    _, *second_grads = run(*second, reverse=True)
    return grad_a, *joined(first_grads, second_grads)


def forms_of_gradients(h, u, h0, extents):
    """Fake tensors for the gradients of a, u, h0 and the bias."""
    dtype = h.dtype if h0 is None else h0.dtype
    grad_h0 = h.new_empty(extents.batch_size(h), h.shape[-1], dtype=dtype)
    grad_bias = h.new_empty(h.shape[-1])
    return torch.empty_like(channels_contiguous(h)), torch.empty_like(u), grad_h0, grad_bias


def _scan_backward_fake(grad_h, grad_h_n, h, u, h0, extents, recurrence):
    return forms_of_gradients(h, u, h0, extents)


def first_gradients(grad_h, grad_h_n, h, u, h0, extents, recurrence):
    """The gradients of a, u and h0 from those of h and h_n, and the gradient of the bias."""
    if grad_h is None:
        zeros = h.new_zeros(*h.shape[:-2], 1, h.shape[-1])
        grad_h = zeros.expand_as(h)  # memory of one time step for all of them
    grads = calls.scan_backward(grad_h, grad_h_n, h, u, h0, extents, recurrence)
    grad_a, grad_u, grad_h0, grad_bias = grads
    return grad_a, grad_u, None if h0 is None else grad_h0, grad_bias


def _scan_setup(ctx, inputs, output):
    _, u, h0, extents, ctx.recurrence = inputs
    ctx.save_for_backward(output[0], u, h0, extents.lengths, extents.cu_seqlens, extents.resets)


def _scan_gradient(ctx, grad_h, grad_h_n):
    h, u, h0, lengths, cu_seqlens, resets = ctx.saved_tensors
    extents = Extents(lengths, cu_seqlens, resets)
    *grads, _ = first_gradients(grad_h, grad_h_n, h, u, h0, extents, ctx.recurrence)
    return *grads, *NO_GRADIENTS


def _scan_backward_setup(ctx, inputs, output):
    grad_h, grad_h_n, h, u, h0, extents, ctx.recurrence = inputs
    ctx.save_for_backward(
        grad_h, grad_h_n, h, u, h0, output[0], extents.lengths, extents.cu_seqlens, extents.resets
    )


def _scan_backward_gradient(ctx, *grads):
    *tensors, lengths, cu_seqlens, resets = ctx.saved_tensors
    extents = Extents(lengths, cu_seqlens, resets)
    return *second_gradients(grads, tensors, extents, ctx.recurrence), *NO_GRADIENTS


def _clip_gradient(x, limit):
    return x.clone()  # an operator may not return its input


def _clip_gradient_setup(ctx, inputs, output):
    ctx.limit = inputs[1]


def _clip_gradient_gradient(ctx, grad):
    return grad.clamp(-ctx.limit, ctx.limit), None


_operator = Operator("scan", "Tensor a, Tensor u, Tensor? h0", "(Tensor, Tensor)")
_operator.register(_scan, _scan_fake, vmap.scan)
_operator.register_autograd(_scan_setup, _scan_gradient)

_operator = Operator(
    "scan_backward",
    "Tensor grad_h, Tensor? grad_h_n, Tensor h, Tensor u, Tensor? h0",
    "(Tensor, Tensor, Tensor, Tensor)",
)
_operator.register(_scan_backward, _scan_backward_fake, vmap.scan_backward)
_operator.register_autograd(_scan_backward_setup, _scan_backward_gradient)

library.define("clip_gradient(Tensor x, float limit) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])
for _device in ("CPU", "CUDA"):
    library.impl("clip_gradient", _clip_gradient, _device)
torch.library.register_fake("fastindrnn::clip_gradient", _clip_gradient, lib=library)
torch.library.register_vmap("fastindrnn::clip_gradient", vmap.clip_gradient, lib=library)
torch.library.register_autograd(
    "fastindrnn::clip_gradient",
    _clip_gradient_gradient,
    setup_context=_clip_gradient_setup,
    lib=library,
)
