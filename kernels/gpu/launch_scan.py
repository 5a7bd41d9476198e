"""Launches of the scan on GPUs. Arguments are checked by the caller."""

import ctypes
import functools
import math

import torch
import triton

from .chunks import _scan_carry_kernel, _scan_fold_kernel
from .model import Device, plan
from .scan import _scan_bwd_kernel, _scan_fwd_kernel

BOUNDS = {
    "relu": (0.0, None),
    "identity": (None, None),
    "hardtanh": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "tanh": (None, None),
}

# A program is one warp, and a step one fused multiply-add, whatever Triton's default may become.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


def scan_forward(
    a,
    u,
    h0,
    h,
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,
    cu_seqlens=None,
    resets=None,
    chunks=None,
    rows=None,
    stages=None,
    block_n=None,
):
    """Writes h_t = f(a_t + u * h_{t-1}) to h, which may be a; returns the last state h_n (B, N).

    a, h: (B, T, N), or (total, N) with cu_seqlens (B + 1,); any strides, but adjacent channels.
    u: (N,). h0: (B, N) or None. lengths: (B,). resets: bool, (B, T) or (total,). What is not given
    of chunks, rows (at most 32; a power of two with several stages), stages and block_n is as
    `plan` says. Raises ValueError for several chunks of tanh.
    """
    cut = chunks, rows, stages, block_n
    B, walk = _walk_arguments((a,), h, nonlinearity, reverse, lengths, cu_seqlens, resets, cut)
    h_n = a.new_empty(B, a.shape[-1])
    stride_ab, stride_at = _strides(a, cu_seqlens)
    stride_hb, stride_ht = _strides(h, cu_seqlens)
    with torch.cuda.device_of(a):
        start = h0
        if walk["CHUNKS"] > 1:
            start = _chunk_starts(B, walk, a, None, u, given=h0, first=h0, clip=(None, None))
        _scan_fwd_kernel[_grid(B, walk)](
            a,
            u,
            start,
            h,
            h_n,
            stride_ab=stride_ab,
            stride_at=stride_at,
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            TANH=nonlinearity == "tanh",
            **walk,
            **OPTIONS,
        )
    return h_n


def scan_backward(
    grad_h,
    grad_h_n,
    h,
    u,
    h0,
    *,
    nonlinearity="relu",
    reverse=False,
    lengths=None,
    cu_seqlens=None,
    resets=None,
    grad_clip=None,
    grad_a=None,
    chunks=None,
    rows=None,
    stages=None,
    block_n=None,
):
    """The gradients (grad_a, grad_u, grad_h0) of `scan_forward`, from the h that it stored, and
    grad_b (N,), the sum of grad_a over batch and time.

    grad_h: like h. grad_h_n: (B, N), or None for zeros. grad_clip: the bound of every message, or
    None. grad_a: a tensor for it, which may be grad_h, or None. The rest as in `scan_forward`.
    grad_a is like h, grad_u like u, and grad_h0 (B, N) of h0's dtype, or without h0 of h's.
    """
    cut = chunks, rows, stages, block_n
    grad_a = torch.empty_like(h) if grad_a is None else grad_a
    B, walk = _walk_arguments(
        (h, grad_h), grad_a, nonlinearity, not reverse, lengths, cu_seqlens, resets, cut
    )
    N = h.shape[-1]
    sums = h.new_empty(2, B, walk["CHUNKS"], N, dtype=_accumulator(h))
    grad_h0 = h.new_empty(B, N) if h0 is None else torch.empty_like(h0)
    clip = _two_floats(grad_clip)
    stride_gb, stride_gt = _strides(grad_h, cu_seqlens)
    stride_hb, stride_ht = _strides(h, cu_seqlens)
    stride_db, stride_dt = _strides(grad_a, cu_seqlens)
    with torch.cuda.device_of(h):
        start = None
        if walk["CHUNKS"] > 1:
            start = _chunk_starts(B, walk, grad_h, h, u, given=grad_h_n, first=None, clip=clip)
        _scan_bwd_kernel[_grid(B, walk)](
            grad_h,
            grad_h_n,
            h,
            u,
            h0,
            start,
            grad_a,
            sums,
            grad_h0,
            clip=clip[0],
            clip_rest=clip[1],
            stride_gb=stride_gb,
            stride_gt=stride_gt,
            stride_hb=stride_hb,
            stride_ht=stride_ht,
            stride_db=stride_db,
            stride_dt=stride_dt,
            TANH=nonlinearity == "tanh",
            **walk,
            **OPTIONS,
        )
    grad_u, grad_b = (shares.sum((0, 1)) for shares in sums)
    return grad_a, grad_u.to(u.dtype), grad_h0, grad_b.to(h.dtype)


def _chunk_starts(B, walk, p, h, u, given, first, clip):
    """(B, CHUNKS, N): the state, or in the backward the message, with which each chunk starts."""
    chunks, N = walk["CHUNKS"], walk["N"]
    cu_seqlens = walk["cu_seqlens_ptr"]
    maps = p.new_empty(B, chunks, 4, N, dtype=_accumulator(p))
    start = p.new_empty(B, chunks, N, dtype=maps.dtype)
    stride_pb, stride_pt = _strides(p, cu_seqlens)
    stride_hb, stride_ht = (0, 0) if h is None else _strides(h, cu_seqlens)
    blocks, _ = _grid(B, walk)
    _scan_fold_kernel[(blocks, chunks - 1)](
        p,
        h,
        u,
        given,
        maps,
        clip=clip[0],
        clip_rest=clip[1],
        stride_pb=stride_pb,
        stride_pt=stride_pt,
        stride_hb=stride_hb,
        stride_ht=stride_ht,
        **walk,
        **OPTIONS,
    )
    _scan_carry_kernel[(B * triton.cdiv(N, 32),)](
        maps,
        u,
        first,
        start,
        cu_seqlens,
        walk["T"],
        N,
        BOUNDED=(walk["LO"] if h is None else clip[0]) is not None,
        CHUNKS=chunks,
        ROWS_OF_SCAN=walk["ROWS"],
        ROWS=8,
        BLOCK_N=32,
        **OPTIONS,
    )
    return start


def device_of(x):
    """What the model needs to know of the GPU that x is on; the interpreter has nothing to fill."""
    return _device(x.device.index) if x.is_cuda else Device("mma", 1, 32, 1 << 20)


@functools.cache
def _device(index):
    properties = torch.cuda.get_device_properties(index)
    family = None
    if torch.version.hip:
        if properties.gcnArchName.startswith(("gfx94", "gfx95")):
            family = "mfma"
    else:
        family = {8: "mma", 9: "wgmma", 10: "tcgen05", 12: "mma"}.get(properties.major)
    return Device(
        family, properties.multi_processor_count, properties.warp_size, properties.L2_cache_size
    )


def _walk_arguments(streams, written, nonlinearity, reverse, lengths, cu_seqlens, resets, cut):
    """B, and the arguments that the kernels which walk over time share.

    streams: the tensors that are read in every step. written: the one that is. cut: chunks, rows,
    stages and block_n, each None where it is as `plan` says.
    """
    x = streams[0]
    if nonlinearity == "tanh":
        if cut[0] not in (None, 1):
            raise ValueError(f"tanh is not a clamp and cannot be cut in time: chunks={cut[0]}")
        cut = 1, *cut[1:]
    if cu_seqlens is None:
        B, T, N = x.shape
    else:
        B, N = len(cu_seqlens) - 1, x.shape[1]
        T = len(x) // max(B, 1)
    itemsize, vector = x.element_size(), _vector((*streams, written), cu_seqlens)
    planned = plan(device_of(x), B, T, N, itemsize, len(streams), vector * itemsize)
    chunks, rows, stages, block_n = cut
    if stages is None and (rows, block_n) != (None, None):
        stages = 1  # a ring of the plan's stages might not take these rows
    chunks, rows, stages, block_n = (
        pick if given is None else given
        for given, pick in zip((chunks, rows, stages, block_n), planned, strict=True)
    )
    lo, hi = BOUNDS[nonlinearity]
    stride_rb, stride_rt = (0, 0) if resets is None else _strides(resets, cu_seqlens)
    return B, {
        "lengths_ptr": lengths,
        "cu_seqlens_ptr": cu_seqlens,
        "resets_ptr": resets,
        "T": T if cu_seqlens is None else len(x),
        "N": N,
        "stride_rb": stride_rb,
        "stride_rt": stride_rt,
        "LO": lo,
        "HI": hi,
        "REVERSE": reverse,
        "CHUNKS": chunks,
        "ROWS": rows,
        "STAGES": stages,
        "BLOCK_N": block_n,
        "EVEN_N": N % block_n == 0,
        "VECTOR": vector,
    }


def _vector(tensors, cu_seqlens):
    """How many neighbouring numbers, up to 16 bytes, all rows are multiples of: a power of two."""
    most = 16 // tensors[0].element_size()
    if any(x.data_ptr() % 16 for x in tensors):
        return 1
    strides = [stride for x in tensors for stride in _strides(x, cu_seqlens)]
    return math.gcd(most, tensors[0].shape[-1], *strides)


def _grid(B, walk):
    return B * triton.cdiv(walk["N"], walk["BLOCK_N"]), walk["CHUNKS"]


def _strides(x, cu_seqlens):
    """Strides of batch and time."""
    return x.stride()[:2] if cu_seqlens is None else (0, x.stride(0))


def _accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _two_floats(x):
    """x as a float32, which is what a launch argument is, and the rest, which float64 needs."""
    if x is None:
        return None, None
    head = ctypes.c_float(x).value
    return head, x - head
