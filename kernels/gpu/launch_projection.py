"""Launches of the layer on GPUs: one fused kernel, or the library's product and then the scan.

Arguments are checked by the caller. The two ways, and when which is taken: see `model`.
"""

import torch
import triton

from .launch_scan import BOUNDS, device_of, scan_backward, scan_forward
from .model import choose, constants_of, options_of
from .projection import _fused_bwd_kernel, _fused_fwd_kernel

# On AMD, Triton before 3.9 hoists the load that a tile waits by out of its loop, or does not
# compile it.
CHAINS_ON_AMD = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)


def indrnn_forward(
    x,
    weight,
    bias,
    u,
    h0,
    h,
    *,
    nonlinearity="relu",
    reverse=False,
    bidirectional=False,
    lengths=None,
    cu_seqlens=None,
    resets=None,
    strategy="auto",
    choice=None,
):
    """Writes h_t = f(W x_t + b + u * h_{t-1}) to h; returns the last state h_n (B, N).

    x: (B, T, K), or (total, K) with cu_seqlens (B + 1,); any strides, but adjacent channels.
    weight: (N, K). bias: (N,) or None. u: (N,). h0: (B, N) or None. h: like x with N channels, and
    dense in x's order of batch and time. bidirectional: the second half of the channels walks the
    other way. strategy: "auto", "fused" or "split"; `choice` overrides what `model` chooses. Raises
    ValueError where the fused kernel cannot serve.
    """
    halves = 2 if bidirectional else 1
    B, T = _sizes(x, cu_seqlens)
    if choice is None:
        choice = _choose(
            strategy, x, weight, h, B, T, halves, nonlinearity, cu_seqlens, lengths, backward=False
        )
    options = {
        "nonlinearity": nonlinearity,
        "reverse": reverse,
        "lengths": lengths,
        "cu_seqlens": cu_seqlens,
        "resets": resets,
    }
    if choice.tile is None:
        return _split_forward(x, weight, bias, u, h0, h, halves, choice.slices, options)
    N = weight.shape[0] // halves
    h_n = h.new_empty(B, halves * N)
    arguments, grid = _fused_arguments(x, N, weight.stride(), choice, B * halves, T, options)
    with torch.cuda.device_of(x):
        _fused_fwd_kernel[grid](
            x,
            weight,
            bias,
            u,
            h0,
            h,
            h_n,
            T=T if cu_seqlens is None else len(h),
            stride_hb=_strides(h)[0],
            stride_ht=_strides(h)[1],
            HALVES=halves,
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
    nonlinearity="relu",
    reverse=False,
    lengths=None,
    cu_seqlens=None,
    resets=None,
    grad_clip=None,
    strategy="auto",
    choice=None,
):
    """`scan_backward` where the gradient of h is grad_next @ weight_next, which is not kept.

    grad_next: (B, T, M), the gradient of the next layer's pre-activation. weight_next: (M, N). The
    rest as in `scan_backward` and `indrnn_forward`.
    """
    B, T = _sizes(h, cu_seqlens)
    if choice is None:
        weight = weight_next.t()
        choice = _choose(
            strategy, grad_next, weight, h, B, T, 1, nonlinearity, cu_seqlens, lengths, True
        )
    options = {
        "nonlinearity": nonlinearity,
        "reverse": reverse,
        "lengths": lengths,
        "cu_seqlens": cu_seqlens,
        "resets": resets,
    }
    grad_a = torch.empty_like(h)
    if choice.tile is None:
        torch.mm(_rows_of(grad_next, grad_a), weight_next, out=_memory_of(grad_a))
        return scan_backward(
            grad_a, grad_h_n, h, u, h0, grad_clip=grad_clip, grad_a=grad_a, **options
        )
    N = h.shape[-1]
    tiles = triton.cdiv(T, choice.tile.block_t) if choice.chained else 1
    sums = h.new_empty(2, tiles, B, N, dtype=torch.float32)
    grad_h0 = h.new_empty(B, N) if h0 is None else torch.empty_like(h0)
    strides = weight_next.stride()[::-1]
    arguments, grid = _fused_arguments(grad_next, N, strides, choice, B, T, options)
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
            T=T if cu_seqlens is None else len(h),
            stride_hb=_strides(h)[0],
            stride_ht=_strides(h)[1],
            stride_db=_strides(grad_a)[0],
            stride_dt=_strides(grad_a)[1],
            **arguments,
        )
    grad_u, grad_b = (shares.sum((0, 1)) for shares in sums)  # no views of one tensor
    return grad_a, grad_u.to(u.dtype), grad_h0, grad_b.to(h.dtype)


def _choose(strategy, x, weight, h, B, T, halves, nonlinearity, cu_seqlens, lengths, backward):
    K, N = x.shape[-1], weight.shape[0] // halves
    device = device_of(x)
    obstacle = None
    if x.dtype == torch.float64:
        obstacle = "no tensor cores for float64"
    elif nonlinearity == "tanh":
        obstacle = "tanh is not a clamp and cannot be folded"
    elif device.family is None:
        obstacle = "it knows no matrix instructions of this GPU"
    elif x.dtype == torch.bfloat16 and not isinstance(_fused_fwd_kernel, triton.JITFunction):
        obstacle = "Triton's interpreter cannot multiply bfloat16"
    elif K == 0:
        obstacle = "there is no product with 0 features"
    elif _farthest(weight) >= 2**31:
        obstacle = "its offsets in a weight have 31 bits, and this weight spans more elements"
    if strategy == "fused" and obstacle:
        raise ValueError(f"strategy='fused' cannot be: {obstacle}; 'split' and 'auto' can")
    # Without TF32 the product runs on the plain units, where the library's is faster.
    is_plain = x.dtype == torch.float32 and not _allows_tf32()
    if strategy == "auto" and (obstacle or is_plain):
        strategy = "split"
    # What Triton takes as a sign that 16 bytes can be loaded at once.
    tensors = (x, weight.t() if backward else weight, h)
    aligned = all(
        y.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in y.stride()[:-1])
        for y in tensors
    )
    can_chain = cu_seqlens is None and (CHAINS_ON_AMD or not torch.version.hip)
    most_slices = B if cu_seqlens is None and not _is_time_first(h) else 1
    return choose(
        device,
        strategy,
        B * halves,
        T,
        K,
        N,
        x.element_size(),
        backward,
        aligned,
        can_chain,
        1 if backward else most_slices,
    )


def _split_forward(x, weight, bias, u, h0, h, halves, slices, options):
    """The product into h, then the scan there, for some sequences after the others."""
    B = len(x)
    ends = []
    for i in range(slices):
        part = slice(i * B // slices, (i + 1) * B // slices)
        x_part, h_part, h0_part, taken = x, h, h0, options
        if slices > 1:
            x_part, h_part = x[part], h[part]
            h0_part = None if h0 is None else h0[part]
            of_batch = ("lengths", "resets")
            taken = options | {
                name: None if options[name] is None else options[name][part] for name in of_batch
            }
        rows = _rows_of(x_part, h_part)
        out = _memory_of(h_part)
        if bias is None:
            torch.mm(rows, weight.t(), out=out)
        else:
            torch.addmm(bias, rows, weight.t(), out=out)
        N = h.shape[-1] // halves
        for half in range(halves):
            channels = slice(half * N, (half + 1) * N)
            h_half = h_part[..., channels]
            ends.append(
                scan_forward(
                    h_half,
                    u[channels],
                    None if h0_part is None else h0_part[:, channels].contiguous(),
                    h_half,
                    **taken | {"reverse": taken["reverse"] != bool(half)},
                )
            )
    if len(ends) == 1:
        return ends[0]
    parts = [torch.cat(ends[i : i + halves], 1) for i in range(0, len(ends), halves)]
    return torch.cat(parts)


def _fused_arguments(x, N, strides, choice, B, T, options):
    """What the two fused kernels share, and the grid. B: sequences and directions."""
    cut, K = choice.tile, x.shape[-1]
    lo, hi = BOUNDS[options["nonlinearity"]]
    resets = options["resets"]
    stride_rb, stride_rt = (0, 0) if resets is None else _strides(resets.unsqueeze(-1))
    programs = B * triton.cdiv(N, cut.block_n)
    ticket = states = None
    if choice.chained:
        programs *= triton.cdiv(T, cut.block_t)
        words = torch.zeros(programs * cut.block_n + 1, dtype=torch.int64, device=x.device)
        states, ticket = words[:-1], words[-1:].view(torch.int32)
    arguments = {
        "lengths_ptr": options["lengths"],
        "cu_seqlens_ptr": options["cu_seqlens"],
        "resets_ptr": resets,
        "ticket_ptr": ticket,
        "states_ptr": states,
        "N": N,
        "K": K,
        "stride_xb": _strides(x)[0],
        "stride_xt": _strides(x)[1],
        "stride_wn": strides[0],
        "stride_wk": strides[1],
        "stride_rb": stride_rb,
        "stride_rt": stride_rt,
        "LO": lo,
        "HI": hi,
        "REVERSE": options["reverse"],
        **constants_of(cut, K, device_of(x).lanes),
        "PRECISION": "tf32" if x.dtype == torch.float32 and _allows_tf32() else "ieee",
        **options_of(cut),
    }
    return arguments, (programs,)


def _rows_of(x, like):
    """(B, T, K) as (B*T, K) in the order of `like` in memory: a view where x has that order too."""
    return (x.transpose(0, 1) if _is_time_first(like) else x).flatten(0, -2)


def _memory_of(h):
    """The rows of h, which is dense, in their order: what is written there is written to h."""
    h = h.transpose(0, 1) if _is_time_first(h) else h
    return h.view(h.shape[:-1].numel(), h.shape[-1])


def _farthest(x):
    """The offset of the last element of x."""
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def _is_time_first(x):
    return x.dim() == 3 and x.stride(0) < x.stride(1)


def _sizes(x, cu_seqlens):
    """Sequences, and the padded length; of packed sequences the mean one."""
    if cu_seqlens is None:
        return x.shape[:2]
    B = len(cu_seqlens) - 1
    return B, len(x) // max(B, 1)


def _strides(x):
    """Strides of batch and time; without a batch dimension its stride is 0."""
    return x.stride()[:2] if x.dim() == 3 else (0, x.stride(0))


def _allows_tf32():
    """PyTorch's own setting for products of float32; AMD's matrix instructions take them whole."""
    if torch.version.hip:
        return False
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
