"""Launches of the layer on GPUs: one fused kernel, or the library's product and then the scan.

Arguments are checked by the caller. Which of the two is taken: see `ways` and `model`.
"""

import torch
import triton

from ..tensors import BOUNDS, flat_view, flatten_like
from . import devices
from .launch_scan import scan_backward, scan_forward
from .model import compiler_options_of, constants_of
from .projection import _fused_fwd_kernel
from .projection_backward import _fused_bwd_kernel
from .tensors import ScanOptions, padded_length, sizes, strides
from .ways import choice_of


def indrnn_forward(
    x, weight, bias, u, h0, h, *, bidirectional=False, strategy="auto", choice=None, **options
):
    """Writes h_t = f(W x_t + b + u * h_{t-1}) to h; returns the last state h_n (B, N).

    x: (B, T, K), or (total, K) with cu_seqlens; any strides, but adjacent features.
    weight: (N, K). bias: (N,) or None. u: (N,). h0: (B, N) or None. h: like x with N channels, and
    dense in x's order of batch and time. bidirectional: the second half of the channels takes the
    steps in the opposite order. strategy: "auto", "fused" or "split"; `choice` overrides what
    `model` chooses. options: the fields of `ScanOptions`. Raises ValueError where the fused kernel
    is asked for and cannot serve.
    """
    directions = 2 if bidirectional else 1
    options = ScanOptions(**options)
    if choice is None:
        choice = choice_of(strategy, x, weight, h, options, directions=directions)
    if choice.tile is None:
        return _split_forward(x, weight, bias, u, h0, h, options, directions, choice.slices)
    B, T = sizes(x, options.cu_seqlens)
    N = weight.shape[0] // directions
    h_n = h.new_empty(B, directions * N)
    arguments, grid = _fused_arguments(
        x, N, weight.stride(), options, choice, T=T, batch=B * directions
    )
    stride_hb, stride_ht = strides(h, options.cu_seqlens)
    with torch.cuda.device_of(x):
        _fused_fwd_kernel[grid](
            x,
            weight,
            bias,
            u,
            h0,
            h,
            h_n,
            T=padded_length(h, options.cu_seqlens),
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            DIRECTIONS=directions,
            **arguments,
        )
    return h_n


def projected_backward(
    grad_next,
    weight_next,
    grad_h_n,
    h,
    u,
    h0,
    *,
    grad_clip=None,
    strategy="auto",
    choice=None,
    **options,
):
    """`scan_backward` where the gradient of h is grad_next @ weight_next, which is not kept.

    grad_next: (B, T, M), the gradient of the next layer's pre-activation. weight_next: (M, N). The
    rest as in `scan_backward` and `indrnn_forward`.
    """
    options = ScanOptions(**options)
    if choice is None:
        choice = choice_of(strategy, grad_next, weight_next.t(), h, options, backward=True)
    grad_a = torch.empty_like(h)
    if choice.tile is None:
        torch.mm(flatten_like(grad_next, grad_a), weight_next, out=flat_view(grad_a))
        return scan_backward(
            grad_a, grad_h_n, h, u, h0, grad_clip=grad_clip, grad_a=grad_a, **options._asdict()
        )
    (B, T), N = sizes(h, options.cu_seqlens), h.shape[-1]
    tiles = triton.cdiv(T, choice.tile.block_t) if choice.chained else 1
    sums = h.new_empty(2, tiles, B, N, dtype=torch.float32)
    grad_h0 = h.new_empty(B, N) if h0 is None else torch.empty_like(h0)
    arguments, grid = _fused_arguments(
        grad_next, N, weight_next.stride()[::-1], options, choice, T=T, batch=B
    )
    stride_hb, stride_ht = strides(h, options.cu_seqlens)
    stride_db, stride_dt = strides(grad_a, options.cu_seqlens)
    with torch.cuda.device_of(h):
        _fused_bwd_kernel[grid](
            grad_next,
            weight_next,
            grad_h_n,
            h,
            u,
            h0,
            grad_a,
            sums,
            grad_h0,
            clip=grad_clip,
            T=padded_length(h, options.cu_seqlens),
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            stride_db=stride_db,
            stride_dt=stride_dt,
            **arguments,
        )
    grad_u, grad_bias = (terms.sum((0, 1)) for terms in sums)
    return grad_a, grad_u.to(u.dtype), grad_h0, grad_bias.to(h.dtype)


def _split_forward(x, weight, bias, u, h0, h, options, directions, slices):
    """The product into h, then the scan there, for each of `slices` parts of the batch in turn;
    returns h_n."""
    if slices == 1:
        return _split_part(x, weight, bias, u, h0, h, options, directions)
    B, last_states = len(x), []
    for i in range(slices):
        part = slice(i * B // slices, (i + 1) * B // slices)
        lengths, resets = (
            None if option is None else option[part] for option in (options.lengths, options.resets)
        )
        last_states.append(
            _split_part(
                x[part],
                weight,
                bias,
                u,
                None if h0 is None else h0[part],
                h[part],
                options._replace(lengths=lengths, resets=resets),
                directions,
            )
        )
    return torch.cat(last_states)


def _split_part(x, weight, bias, u, h0, h, options, directions):
    """The product into h, then the scan there, one direction after the other; returns h_n."""
    flat_x, flat_h = flatten_like(x, h), flat_view(h)
    if bias is None:
        torch.mm(flat_x, weight.t(), out=flat_h)
    else:
        torch.addmm(bias, flat_x, weight.t(), out=flat_h)
    N, last_states = h.shape[-1] // directions, []
    for direction in range(directions):
        channels = slice(direction * N, (direction + 1) * N)
        own = options._replace(reverse=options.reverse != bool(direction))
        a = h[..., channels]
        first = None if h0 is None else h0[:, channels].contiguous()
        last_states.append(scan_forward(a, u[channels], first, a, **own._asdict()))
    return last_states[0] if directions == 1 else torch.cat(last_states, 1)


def _fused_arguments(x, N, weight_strides, options, choice, *, T, batch):
    """The arguments that the two fused kernels have in common, and the grid.

    N: channels of one direction. batch: the number of sequences, for each direction.
    """
    tile, K = choice.tile, x.shape[-1]
    lo, hi = BOUNDS[options.nonlinearity]
    cu_seqlens, resets = options.cu_seqlens, options.resets
    stride_xb, stride_xt = strides(x, cu_seqlens)
    stride_rb, stride_rt = (0, 0) if resets is None else strides(resets, cu_seqlens)
    programs = batch * triton.cdiv(N, tile.block_n)
    ticket = states = None
    if choice.chained:
        programs *= triton.cdiv(T, tile.block_t)
        words = torch.zeros(programs * tile.block_n + 1, dtype=torch.int64, device=x.device)
        states, ticket = words[:-1], words[-1:].view(torch.int32)
    is_tf32 = x.dtype == torch.float32 and devices.allows_tf32()
    arguments = {
        "lengths_ptr": options.lengths,
        "cu_seqlens_ptr": cu_seqlens,
        "resets_ptr": resets,
        "ticket_ptr": ticket,
        "states_ptr": states,
        "N": N,
        "K": K,
        "stride_xb": stride_xb,
        "stride_xt": stride_xt,
        "stride_wn": weight_strides[0],
        "stride_wk": weight_strides[1],
        "stride_rb": stride_rb,
        "stride_rt": stride_rt,
        "LO": lo,
        "HI": hi,
        "REVERSE": options.reverse,
        **constants_of(tile, K, devices.device_of(x).lanes),
        "PRECISION": "tf32" if is_tf32 else "ieee",
        **compiler_options_of(tile),
    }
    return arguments, (programs,)
