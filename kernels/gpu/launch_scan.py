"""Launches of the scan on GPUs. Arguments are checked by the caller."""

import ctypes
from typing import NamedTuple

import torch
import triton

from ..tensors import BOUNDS, state_dtype
from . import devices
from .chunks import _scan_propagate_kernel, _scan_summarize_kernel
from .model import plan
from .scan import _scan_bwd_kernel, _scan_fwd_kernel
from .tensors import ScanOptions, padded_length, sizes, strides, vector_of

# How Triton compiles the kernels of the scan: a program is one warp, and p + q*s one fused
# multiply-add, whatever Triton's default may become.
COMPILER_OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


class Clip(NamedTuple):
    """A bound of the gradients in two parts, since a number that Triton passes to a kernel is a
    float32. Without a bound both are None."""

    head: float | None  # the bound as a float32
    rest: float | None  # what that rounding left, for kernels that compute in float64


def scan_forward(a, u, h0, h, *, chunks=None, rows=None, stages=None, block_n=None, **options):
    """Writes h_t = f(a_t + u * h_{t-1}) to h, which may be a; returns the last state h_n (B, N).

    a, h: (B, T, N), or (total, N) with cu_seqlens; any strides, but adjacent channels. u: (N,). h0:
    (B, N) or None. chunks, rows (at most 32; a power of two with several stages), stages and
    block_n are the fields of `model.Plan`, each None for that of `model.plan`. options: the fields
    of `ScanOptions`. Raises ValueError for several chunks of tanh.
    """
    options = ScanOptions(**options)
    B, arguments = _shared_arguments(
        read=(a,),
        written=h,
        options=options,
        requested={"chunks": chunks, "rows": rows, "stages": stages, "block_n": block_n},
    )
    h_n = a.new_empty(B, a.shape[-1])
    stride_ab, stride_at = strides(a, options.cu_seqlens)
    stride_hb, stride_ht = strides(h, options.cu_seqlens)
    with torch.cuda.device_of(a):
        start = h0
        if arguments["CHUNKS"] > 1:
            start = _chunk_starts(
                B, arguments, a, None, u, given=h0, first=h0, clip=Clip(None, None)
            )
        _scan_fwd_kernel[_grid(B, arguments)](
            a,
            u,
            start,
            h,
            h_n,
            stride_ab=stride_ab,
            stride_at=stride_at,
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            TANH=options.nonlinearity == "tanh",
            **arguments,
            **COMPILER_OPTIONS,
        )
    return h_n


def scan_backward(
    grad_h,
    grad_h_n,
    h,
    u,
    h0,
    *,
    grad_clip=None,
    grad_a=None,
    chunks=None,
    rows=None,
    stages=None,
    block_n=None,
    **options,
):
    """The gradients (grad_a, grad_u, grad_h0) of `scan_forward`, from the h that it stored, and
    grad_bias (N,), the sum of grad_a over batch and time.

    grad_h: like h. grad_h_n: (B, N), or None for zeros. grad_clip: the bound of the gradient with
    respect to each a_t, applied at every step before it is passed on; or None. grad_a: a tensor to
    write to, which may be grad_h, or None. The rest as in `scan_forward`. grad_a is like h, grad_u
    like u, and grad_h0 (B, N) of h0's dtype, or without h0 of h's.
    """
    options = ScanOptions(**options)
    grad_a = torch.empty_like(h) if grad_a is None else grad_a
    B, arguments = _shared_arguments(
        read=(h, grad_h),
        written=grad_a,
        options=options._replace(reverse=not options.reverse),
        requested={"chunks": chunks, "rows": rows, "stages": stages, "block_n": block_n},
    )
    N = h.shape[-1]
    sums = h.new_empty(2, B, arguments["CHUNKS"], N, dtype=state_dtype(h))
    grad_h0 = h.new_empty(B, N) if h0 is None else torch.empty_like(h0)
    clip = _clip(grad_clip)
    stride_gb, stride_gt = strides(grad_h, options.cu_seqlens)
    stride_hb, stride_ht = strides(h, options.cu_seqlens)
    stride_db, stride_dt = strides(grad_a, options.cu_seqlens)
    with torch.cuda.device_of(h):
        start = None
        if arguments["CHUNKS"] > 1:
            start = _chunk_starts(B, arguments, grad_h, h, u, given=grad_h_n, first=None, clip=clip)
        _scan_bwd_kernel[_grid(B, arguments)](
            grad_h,
            grad_h_n,
            h,
            u,
            h0,
            start,
            grad_a,
            sums,
            grad_h0,
            clip=clip.head,
            clip_rest=clip.rest,
            stride_gb=stride_gb,
            stride_gt=stride_gt,
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            stride_db=stride_db,
            stride_dt=stride_dt,
            TANH=options.nonlinearity == "tanh",
            **arguments,
            **COMPILER_OPTIONS,
        )
    grad_u, grad_bias = (terms.sum((0, 1)) for terms in sums)
    return grad_a, grad_u.to(u.dtype), grad_h0, grad_bias.to(h.dtype)


def _chunk_starts(B, arguments, p, h, u, *, given, first, clip):
    """(B, CHUNKS, N): the state h, or in the backward the gradient d, in which each chunk starts.

    p: a, and h is None; or grad_h and h. given: h0, or grad_h_n. first: the start of chunk 0.
    """
    chunks, N = arguments["CHUNKS"], arguments["N"]
    cu_seqlens = arguments["cu_seqlens_ptr"]
    maps = p.new_empty(B, chunks, 4, N, dtype=state_dtype(p))
    start = p.new_empty(B, chunks, N, dtype=maps.dtype)
    stride_pb, stride_pt = strides(p, cu_seqlens)
    stride_hb, stride_ht = (0, 0) if h is None else strides(h, cu_seqlens)
    blocks, _ = _grid(B, arguments)
    _scan_summarize_kernel[(blocks, chunks - 1)](
        p,
        h,
        u,
        given,
        maps,
        clip=clip.head,
        clip_rest=clip.rest,
        stride_pb=stride_pb,
        stride_pt=stride_pt,
        stride_hb=stride_hb,
        stride_ht=stride_ht,
        **arguments,
        **COMPILER_OPTIONS,
    )
    _scan_propagate_kernel[(B * triton.cdiv(N, 32),)](
        maps,
        u,
        first,
        start,
        cu_seqlens,
        arguments["T"],
        N,
        BOUNDED=(arguments["LO"] if h is None else clip.head) is not None,
        CHUNKS=chunks,
        ROWS=arguments["ROWS"],
        GROUP=8,
        BLOCK_N=32,
        **COMPILER_OPTIONS,
    )
    return start


def _shared_arguments(read, written, options, requested):
    """B, and the arguments that the kernels which take all time steps have in common.

    read: the tensors whose rows are read at each step. written: the one whose rows are written.
    requested: the fields of the plan, each None where it is as `model.plan` says.
    """
    x, cu_seqlens = read[0], options.cu_seqlens
    requested = {name: value for name, value in requested.items() if value is not None}
    if options.nonlinearity == "tanh":
        if requested.get("chunks", 1) != 1:
            raise ValueError(
                f"tanh is not a clamp and takes one chunk of time: chunks={requested['chunks']}"
            )
        requested["chunks"] = 1
    if "stages" not in requested and requested.keys() & {"rows", "block_n"}:
        requested["stages"] = 1  # a ring of the plan's stages might not take these rows
    (B, T), N = sizes(x, cu_seqlens), x.shape[-1]
    vector = vector_of((*read, written), cu_seqlens)
    itemsize = x.element_size()
    device = devices.device_of(x)
    planned = plan(device, B, T, N, itemsize, len(read), vector=vector * itemsize)
    planned = planned._replace(**requested)
    lo, hi = BOUNDS[options.nonlinearity]
    resets = options.resets
    stride_rb, stride_rt = (0, 0) if resets is None else strides(resets, cu_seqlens)
    return B, {
        "lengths_ptr": options.lengths,
        "cu_seqlens_ptr": cu_seqlens,
        "resets_ptr": resets,
        "T": padded_length(x, cu_seqlens),
        "N": N,
        "stride_rb": stride_rb,
        "stride_rt": stride_rt,
        "LO": lo,
        "HI": hi,
        "REVERSE": options.reverse,
        "CHUNKS": planned.chunks,
        "ROWS": planned.rows,
        "STAGES": planned.stages,
        "BLOCK_N": planned.block_n,
        "EVEN_N": N % planned.block_n == 0,
        "VECTOR": vector,
    }


def _grid(B, arguments):
    return B * triton.cdiv(arguments["N"], arguments["BLOCK_N"]), arguments["CHUNKS"]


def _clip(bound):
    if bound is None:
        return Clip(None, None)
    head = ctypes.c_float(bound).value
    return Clip(head, bound - head)
