"""The operators that have a projection in them.

    fastindrnn::indrnn              one layer: h_t = f(W x_t + b + u * h_{t-1})
    fastindrnn::stack               layers, each on the output of the one before
    fastindrnn::projected_backward  in the gradient of a stack, that of one layer

A layer saves h for the backward, and x where its weight is trained, never the pre-activation; a
stack saves the h of each layer, and nothing else of that size. Its
backward goes from the last layer down,

    d_L = scan_backward(gradient of h_L)            dW_l = sum over b, t of d_l h_{l-1}, h_0 = x
    d_l = reverse recurrence of d_{l+1} W_{l+1}     dx = d_1 W_1

where the product d_{l+1} W_{l+1} is the input of the recurrence and is not kept; in memory are two
d at a time. Where gradients are to be differentiated in turn, it is composed of operators that can
be. A gradient needs all of its operator: with DistributedDataParallel, the exchange of a stack's
gradients begins after its backward, not within it.
"""

import math

import torch

from . import flops, vmap
from .ops import (
    SEQUENCES,
    batch,
    channels_contiguous,
    contiguous,
    first_gradients,
    is_time_first,
    kernels_of,
    options_of,
    past_the_dispatcher,
    register,
    register_autocast,
    register_autograd,
    rows_like,
)


def _indrnn(
    x,
    weight,
    bias,
    u,
    h0,
    lengths,
    cu_seqlens,
    resets,
    nonlinearity,
    reverse,
    bidirectional,
    strategy,
    grad_clip,
):
    x = channels_contiguous(x)
    h = rows_like(x, weight.shape[0])
    h_n = kernels_of(x).indrnn_forward(
        x,
        weight,
        contiguous(bias),
        u.contiguous(),
        contiguous(h0),
        h,
        nonlinearity=nonlinearity,
        reverse=reverse,
        bidirectional=bidirectional,
        lengths=lengths,
        cu_seqlens=cu_seqlens,
        resets=resets,
        strategy=strategy,
    )
    return h, h_n


def _indrnn_fake(x, weight, bias, u, h0, lengths, cu_seqlens, *options):
    N = weight.shape[0]
    return rows_like(channels_contiguous(x), N), x.new_empty(batch(x, cu_seqlens), N)


def _indrnn_autocast(operator, dtype, x, weight, bias, *rest):
    """The product and its bias in autocast's dtype; u and states as they are: rounding u to
    bfloat16 would end its memory after some hundred steps."""
    bias = None if bias is None else bias.to(dtype)
    return operator(x.to(dtype), weight.to(dtype), bias, *rest)


def _indrnn_setup(ctx, inputs, output):
    x, weight, _, u, h0, *sequences = inputs[:8]
    x = x if ctx.needs_input_grad[1] else None  # for the weight's gradient alone
    nonlinearity, reverse, bidirectional, _, grad_clip = inputs[8:]
    ctx.options = nonlinearity, reverse, bidirectional, grad_clip
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], u, h0, *sequences, x, weight)


def _indrnn_gradient(ctx, grad_h, grad_h_n):
    *saved, x, weight = ctx.saved_tensors
    grad_a, grad_u, grad_h0, grad_b = first_gradients(saved, ctx.options, grad_h, grad_h_n)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = _product(grad_a, weight) if needs_x else None
    grad_weight = _weight_gradient(grad_a, x) if needs_weight else None
    return grad_x, grad_weight, grad_b if needs_bias else None, grad_u, grad_h0, *[None] * 8


def _stack(x, weights, biases, us, h0, *options):
    *sequences, strategy = options[:6]
    *inner, last = us
    N = len(last)
    rows, ends = channels_contiguous(x), []
    between, h = rows_like(rows, len(inner), N), rows_like(rows, N)
    for layer, out in enumerate((*between, h)):
        end = kernels_of(x).indrnn_forward(
            rows,
            weights[layer],
            biases[layer].contiguous() if biases else None,
            us[layer].contiguous(),
            None if h0 is None else h0[layer].contiguous(),
            out,
            **options_of(sequences),
            bidirectional=False,
            strategy=strategy,
        )
        ends.append(end)
        rows = out
    # Into memory of its own: what torch.stack returns is a view to autograd, which then refuses to
    # have it changed in place.
    h_n = h.new_empty(len(ends), *ends[0].shape)
    return h, torch.stack(ends, out=h_n), between


def _stack_fake(x, weights, biases, us, h0, lengths, cu_seqlens, *options):
    L, N = len(us), us[0].shape[0]
    h_n, rows = x.new_empty(L, batch(x, cu_seqlens), N), channels_contiguous(x)
    return rows_like(rows, N), h_n, rows_like(rows, L - 1, N)


def _stack_autocast(operator, dtype, x, weights, biases, *rest):
    weights = [weight.to(dtype) for weight in weights]
    return operator(x.to(dtype), weights, [bias.to(dtype) for bias in biases], *rest)


def _stack_setup(ctx, inputs, output):
    x, weights, biases, us, h0, *sequences = inputs[:8]
    nonlinearity, reverse, ctx.strategy, grad_clip = inputs[8:]
    x = x if ctx.needs_input_grad[1] else None  # for the gradient of the first weight alone
    h, _, between = output
    ctx.options = nonlinearity, reverse, False, grad_clip
    ctx.layers, ctx.has_biases = len(us), bool(biases)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, between, x, h0, *sequences, *weights, *us)


def _stack_gradient(ctx, grad_h, grad_h_n, grad_between):
    L = ctx.layers
    h, between, x, h0, lengths, cu_seqlens, resets, *parameters = ctx.saved_tensors
    sequences, weights, us = (lengths, cu_seqlens, resets), parameters[:L], parameters[L:]
    nonlinearity, reverse, _, grad_clip = ctx.options
    needs_x, *needs, needs_h0 = ctx.needs_input_grad[:5]
    trained = [any(kind[layer] for kind in needs if kind) for layer in range(L)]
    lowest = 0 if needs_x or needs_h0 else trained.index(True)
    # The rows of each layer's input and output.
    rows = [x, *(between[layer] for layer in range(L - 1)), h]
    is_first_order = not torch.is_grad_enabled() and grad_between is None
    grad_a, grads = None, []  # type: ignore[var-annotated]
    for layer in reversed(range(lowest, L)):
        arriving = None if grad_h_n is None else grad_h_n[layer]
        state = rows[layer + 1], us[layer], None if h0 is None else h0[layer]
        if layer < L - 1 and is_first_order:
            found = torch.ops.fastindrnn.projected_backward(
                grad_a,
                weights[layer + 1],
                arriving,
                *state,
                *sequences,
                nonlinearity,
                reverse,
                grad_clip,
                ctx.strategy,
            )
        else:
            if layer < L - 1:
                grad_h = _product(grad_a, weights[layer + 1])
                grad_h = grad_h if grad_between is None else grad_h + grad_between[layer]
            found = first_gradients((*state, *sequences), ctx.options, grad_h, arriving)
            grad_h = None
        grad_a = found[0]
        grad_weight = _weight_gradient(grad_a, rows[layer]) if needs[0][layer] else None
        grads.insert(0, (grad_weight, *found[1:]))
    grads = [(None,) * 4] * lowest + grads
    grad_weights, grad_us, grad_h0s, grad_biases = (list(kind) for kind in zip(*grads, strict=True))
    return (
        _product(grad_a, weights[0]) if needs_x else None,
        grad_weights,
        grad_biases if ctx.has_biases else [],
        grad_us,
        torch.stack(grad_h0s) if needs_h0 else None,
        *[None] * 7,
    )


def _projected_backward(grad_next, weight_next, grad_h_n, h, u, h0, *options):
    *sequences, grad_clip, strategy = options
    return kernels_of(h).projected_backward(
        channels_contiguous(grad_next),
        weight_next,
        contiguous(grad_h_n),
        channels_contiguous(h),
        u.contiguous(),
        contiguous(h0),
        **options_of(sequences),
        grad_clip=grad_clip,
        strategy=strategy,
    )


def _projected_backward_fake(grad_next, weight_next, grad_h_n, h, u, h0, lengths, cu_seqlens, *_):
    grad_h0 = h.new_empty(
        batch(h, cu_seqlens), h.shape[-1], dtype=h.dtype if h0 is None else h0.dtype
    )
    grad_a = torch.empty_like(channels_contiguous(h))
    return grad_a, torch.empty_like(u), grad_h0, h.new_empty(h.shape[-1])


def _flatten(x, like):
    """(B, T, K) to (B*T, K) in the order of `like` in memory: a view where x has that order too."""
    x = x.transpose(0, 1) if is_time_first(like) else x
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # no -1, which 0 features leave open


def _product(rows, weight):
    """rows @ weight, in the rows' order in memory."""
    if is_time_first(rows):
        return (rows.transpose(0, 1) @ weight).transpose(0, 1)
    return rows @ weight


def _weight_gradient(grad_a, x):
    return _flatten(grad_a, grad_a).t() @ _flatten(x, grad_a)


register(
    "indrnn",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor u, Tensor? h0, "
    f"{SEQUENCES}, bool bidirectional, str strategy, float? grad_clip) -> (Tensor, Tensor)",
    _indrnn,
    _indrnn_fake,
    vmap.indrnn,
)
register(
    "stack",
    "(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] us, Tensor? h0, "
    f"{SEQUENCES}, str strategy, float? grad_clip) -> (Tensor, Tensor, Tensor)",
    _stack,
    _stack_fake,
    vmap.stack,
)
register(
    "projected_backward",
    "(Tensor grad_next, Tensor weight_next, Tensor? grad_h_n, Tensor h, Tensor u, Tensor? h0, "
    f"{SEQUENCES}, float? grad_clip, str strategy) -> (Tensor, Tensor, Tensor, Tensor)",
    _projected_backward,
    _projected_backward_fake,
    vmap.projected_backward,
)
register_autograd("indrnn", _indrnn_setup, _indrnn_gradient)
register_autograd("stack", _stack_setup, _stack_gradient)
register_autocast("indrnn", _indrnn_autocast)
register_autocast("stack", _stack_autocast)
flops.register_when_counted()
indrnn = past_the_dispatcher(torch.ops.fastindrnn.indrnn.default, _indrnn)
