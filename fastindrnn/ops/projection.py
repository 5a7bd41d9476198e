"""The operators with a product of input and weight.

    fastindrnn::indrnn              one layer: h_t = f(W x_t + b + u * h_{t-1})
    fastindrnn::stack               layers, each on the output of the one before
    fastindrnn::projected_backward  one layer's part of a stack's gradient

For the backward a layer keeps h, and x where its weight is trained; it never keeps W x + b. A stack
keeps the h of each of its layers, and x. Its backward goes from the last layer down,

    d_L = scan_backward(gradient of h_L)            dW_l = sum over b, t of d_l h_{l-1}, h_0 = x
    d_l = reverse recurrence of d_{l+1} W_{l+1}     dx = d_1 W_1

with d_l the gradient of W_l h_{l-1} + b_l. The product d_{l+1} W_{l+1} is written where d_l will
stand, so that memory holds two d at a time. `projected_backward` computes that line. It has no
derivative of its own: where the gradients of a stack are to be differentiated in turn, a product
and `scan_backward` take its place.

PyTorch has the gradients of a stack's parameters when the whole operator is done. With
DistributedDataParallel their exchange begins then, not layer by layer.
"""

from typing import Any

import torch

from ..kernels import tensors
from ..options import Extents
from . import calls, flops, vmap
from .backends import kernels_of
from .layout import channels_contiguous, contiguous, empty_like_input, project
from .registration import NO_GRADIENTS, Operator
from .scan import first_gradients, forms_of_gradients


def _indrnn(x, weight, bias, u, h0, extents, recurrence, strategy):
    x = channels_contiguous(x)
    h = empty_like_input(x, weight.shape[0])
    return h, _forward(x, weight, bias, u, h0, h, extents, recurrence, strategy)


def _forward(x, weight, bias, u, h0, h, extents, recurrence, strategy):
    """Writes h, returns h_n."""
    return kernels_of(x).indrnn_forward(
        x,
        weight,
        contiguous(bias),
        u.contiguous(),
        contiguous(h0),
        h,
        nonlinearity=recurrence.nonlinearity,
        reverse=recurrence.direction == "reverse",
        bidirectional=recurrence.direction == "both",
        strategy=strategy,
        **extents.by_name(),
    )


def _indrnn_fake(x, weight, bias, u, h0, extents, recurrence, strategy):
    N = weight.shape[0]
    return empty_like_input(channels_contiguous(x), N), x.new_empty(extents.batch_size(x), N)


def _indrnn_setup(ctx, inputs, output):
    x, weight, _, u, h0, extents, ctx.recurrence, _ = inputs
    x = x if ctx.needs_input_grad[1] else None  # for the weight's gradient alone
    ctx.save_for_backward(
        output[0], u, h0, x, weight, extents.lengths, extents.cu_seqlens, extents.resets
    )


def _indrnn_gradient(ctx, grad_h, grad_h_n):
    h, u, h0, x, weight, lengths, cu_seqlens, resets = ctx.saved_tensors
    extents = Extents(lengths, cu_seqlens, resets)
    grads = first_gradients(grad_h, grad_h_n, h, u, h0, extents, ctx.recurrence)
    grad_a, grad_u, grad_h0, grad_bias = grads
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = project(grad_a, weight.t()) if needs_x else None
    grad_weight = _weight_gradient(grad_a, x) if needs_weight else None
    grad_bias = grad_bias if needs_bias else None
    return grad_x, grad_weight, grad_bias, grad_u, grad_h0, *NO_GRADIENTS, None


def _stack(x, weights, biases, us, h0, extents, recurrence, strategy):
    *inner, last = us
    N = len(last)
    x = channels_contiguous(x)
    between, h, ends = empty_like_input(x, N, len(inner)), empty_like_input(x, N), []
    for layer, out in enumerate((*between, h)):
        bias = biases[layer] if biases else None
        state = None if h0 is None else h0[layer]
        weight, u = weights[layer], us[layer]
        ends.append(_forward(x, weight, bias, u, state, out, extents, recurrence, strategy))
        x = out
    # Into memory of its own: what torch.stack returns is a view to autograd, which then refuses to
    # have it changed in place.
    h_n = h.new_empty(len(ends), *ends[0].shape)
    return h, torch.stack(ends, out=h_n), between


def _stack_fake(x, weights, biases, us, h0, extents, recurrence, strategy):
    L, N = len(us), us[0].shape[0]
    h_n, like = x.new_empty(L, extents.batch_size(x), N), channels_contiguous(x)
    return empty_like_input(like, N), h_n, empty_like_input(like, N, L - 1)


def _stack_setup(ctx, inputs, output):
    x, weights, biases, us, h0, extents, ctx.recurrence, ctx.strategy = inputs
    # For the gradient of the first weight alone. The flags of the lists are flat here.
    x = x if ctx.needs_input_grad[1] else None
    h, _, between = output
    ctx.layers, ctx.has_biases = len(us), bool(biases)
    of_the_batch = extents.lengths, extents.cu_seqlens, extents.resets
    ctx.save_for_backward(h, between, x, h0, *of_the_batch, *weights, *us)


def _stack_gradient(ctx, grad_h, grad_h_n, grad_between):
    L = ctx.layers
    h, between, x, h0, lengths, cu_seqlens, resets, *parameters = ctx.saved_tensors
    extents, weights, us = Extents(lengths, cu_seqlens, resets), parameters[:L], parameters[L:]
    needs_x, *needs, needs_h0 = ctx.needs_input_grad[:5]
    trained = [any(kind[layer] for kind in needs if kind) for layer in range(L)]
    lowest = 0 if needs_x or needs_h0 else trained.index(True)
    outputs = [*(between[layer] for layer in range(L - 1)), h]
    inputs = [x, *outputs[:-1]]
    is_first_order = not torch.is_grad_enabled() and grad_between is None
    grad_a: Any = None
    grads: list[Any] = []
    for layer in reversed(range(lowest, L)):
        end = None if grad_h_n is None else grad_h_n[layer]
        h, u, start = outputs[layer], us[layer], None if h0 is None else h0[layer]
        if layer < L - 1 and is_first_order:
            found = calls.projected_backward(
                grad_next=grad_a,
                weight_next=weights[layer + 1],
                grad_h_n=end,
                h=h,
                u=u,
                h0=start,
                extents=extents,
                recurrence=ctx.recurrence,
                strategy=ctx.strategy,
            )
        else:
            if layer < L - 1:
                grad_h = project(grad_a, weights[layer + 1].t())
                grad_h = grad_h if grad_between is None else grad_h + grad_between[layer]
            found = first_gradients(grad_h, end, h, u, start, extents, ctx.recurrence)
            grad_h = None
        grad_a = found[0]
        grad_weight = _weight_gradient(grad_a, inputs[layer]) if needs[0][layer] else None
        grads.insert(0, (grad_weight, *found[1:]))
    grads = [(None,) * 4] * lowest + grads
    grad_weights, grad_us, grad_h0s, grad_biases = (list(kind) for kind in zip(*grads, strict=True))
    return (
        project(grad_a, weights[0].t()) if needs_x else None,
        grad_weights,
        grad_biases if ctx.has_biases else [],
        grad_us,
        torch.stack(grad_h0s) if needs_h0 else None,
        *NO_GRADIENTS,
        None,
    )


def _projected_backward(grad_next, weight_next, grad_h_n, h, u, h0, extents, recurrence, strategy):
    return kernels_of(h).projected_backward(
        channels_contiguous(grad_next),
        weight_next,
        contiguous(grad_h_n),
        channels_contiguous(h),
        u.contiguous(),
        contiguous(h0),
        nonlinearity=recurrence.nonlinearity,
        reverse=recurrence.direction == "reverse",
        grad_clip=recurrence.grad_clip,
        strategy=strategy,
        **extents.by_name(),
    )


def _projected_backward_fake(grad_next, weight_next, grad_h_n, h, u, h0, extents, *_):
    return forms_of_gradients(h, u, h0, extents)


def _weight_gradient(grad_a, x):
    return tensors.flatten_like(grad_a, grad_a).t() @ tensors.flatten_like(x, grad_a)


_operator = Operator(
    "indrnn",
    "Tensor x, Tensor weight, Tensor? bias, Tensor u, Tensor? h0",
    "(Tensor, Tensor)",
    more="str strategy",
)
_operator.register(_indrnn, _indrnn_fake, vmap.indrnn)
_operator.register_autograd(_indrnn_setup, _indrnn_gradient)
_operator.register_autocast()

_operator = Operator(
    "stack",
    "Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] us, Tensor? h0",
    "(Tensor, Tensor, Tensor)",
    more="str strategy",
)
_operator.register(_stack, _stack_fake, vmap.stack)
_operator.register_autograd(_stack_setup, _stack_gradient)
_operator.register_autocast()

_operator = Operator(
    "projected_backward",
    "Tensor grad_next, Tensor weight_next, Tensor? grad_h_n, Tensor h, Tensor u, Tensor? h0",
    "(Tensor, Tensor, Tensor, Tensor)",
    more="str strategy",
)
_operator.register(_projected_backward, _projected_backward_fake, vmap.projected_backward)
flops.register_when_counted()
