"""The design of the published CUDA kernels, written anew in Triton: what the scan is compared with.

    forward   h_t = relu(a_t + u * h_{t-1})                      Li et al. 2018, arXiv 1803.04831
    backward  d_t = g_t + u * d_{t+1} where h_t > 0, else 0

A thread owns one channel of one sequence and walks over time. At each step it loads one value,
does one multiply-add and a maximum, and stores one value: so one load of 2 or 4 bytes is in flight
in each thread, and its latency is paid T times. Blocks are of 256 threads. State and sums are
float32. It is kept as plain as its description on purpose: no rows in flight, no chunks of time.

Tensors are (B, T, N) of any batch and time strides, with adjacent channels: the published layout
(T, B, N) is a transposed view. T is at least 1. Only h is saved for the backward. h_0 is 0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 256  # channels of a block, one a thread
OPTIONS = {"num_warps": BLOCK // 32, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit
def _channels(B, N, BLOCK: tl.constexpr):
    """Sequence and channel of each thread, and which threads store. Those past the last channel
    load it too, for a load without a mask is one instruction; but not from a, where another thread
    may store h."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    owned = tl.minimum(index, B * N - 1)
    return (owned // N).to(tl.int64), owned % N, index < B * N


@triton.jit(do_not_specialize=["T"])
def _serial_fwd_kernel(
    a_ptr,  # [B, T, N]
    u_ptr,  # [N]
    h_ptr,  # [B, T, N], may be a_ptr
    B,
    T,
    N,
    stride_ab,
    stride_at,
    stride_hb,
    stride_ht,
    BLOCK: tl.constexpr,
):
    """h_t = relu(a_t + u * h_{t-1}). Floor: a read and h written once, 2*B*T*N elements."""
    b, offs_n, stores = _channels(B, N, BLOCK)
    u = tl.load(u_ptr + offs_n).to(tl.float32)
    a_ptrs = a_ptr + b * stride_ab + offs_n
    h_ptrs = h_ptr + b * stride_hb + offs_n
    h = tl.zeros([BLOCK], tl.float32)
    for _ in range(T):
        z = tl.load(a_ptrs, mask=stores).to(tl.float32) + u * h
        h = tl.where(z > 0.0, z, 0.0)
        tl.store(h_ptrs, h, mask=stores)
        a_ptrs += stride_at
        h_ptrs += stride_ht


@triton.jit
def _message(g_ptrs, u, d, h):
    return tl.where(h > 0.0, tl.load(g_ptrs).to(tl.float32) + u * d, 0.0)


@triton.jit(do_not_specialize=["T"])
def _serial_bwd_kernel(
    g_ptr,  # [B, T, N], gradient of h
    h_ptr,  # [B, T, N], the stored output
    u_ptr,  # [N]
    d_ptr,  # [B, T, N], gradient of a
    grad_u_ptr,  # [B, N], each sequence's share of the gradient of u
    B,
    T,
    N,
    stride_gb,
    stride_gt,
    stride_hb,
    stride_ht,
    stride_db,
    stride_dt,
    BLOCK: tl.constexpr,
):
    """d_t = g_t + u * d_{t+1} where h_t > 0, else 0; grad_u = sum over t of d_t * h_{t-1}.

    Floor: g and h read and d written once, 3*B*T*N elements.
    """
    b, offs_n, stores = _channels(B, N, BLOCK)
    last = tl.cast(T - 1, tl.int64)
    u = tl.load(u_ptr + offs_n).to(tl.float32)
    g_ptrs = g_ptr + b * stride_gb + last * stride_gt + offs_n
    h_ptrs = h_ptr + b * stride_hb + last * stride_ht + offs_n
    d_ptrs = d_ptr + b * stride_db + last * stride_dt + offs_n
    d = tl.zeros([BLOCK], tl.float32)
    grad_u = tl.zeros([BLOCK], tl.float32)
    h = tl.load(h_ptrs).to(tl.float32)
    for _ in range(T - 1):
        h_ptrs -= stride_ht
        previous = tl.load(h_ptrs).to(tl.float32)
        d = _message(g_ptrs, u, d, h)
        tl.store(d_ptrs, d, mask=stores)
        grad_u += d * previous
        h = previous
        g_ptrs -= stride_gt
        d_ptrs -= stride_dt
    tl.store(d_ptrs, _message(g_ptrs, u, d, h), mask=stores)  # h_0 is 0, and adds nothing to grad_u
    tl.store(grad_u_ptr + b * N + offs_n, grad_u, mask=stores)


def serial_scan_forward(a, u, h):
    """Writes h_t = relu(a_t + u * h_{t-1}) to h (B, T, N), which may be a."""
    B, T, N = a.shape
    with torch.cuda.device_of(a):
        _serial_fwd_kernel[(triton.cdiv(B * N, BLOCK),)](
            a, u, h, B, T, N, *a.stride()[:2], *h.stride()[:2], BLOCK=BLOCK, **OPTIONS
        )
    return h


def serial_layer_forward(x, weight, bias, u):
    """h (B, T, N) of x (B, T, K): PyTorch's product, then the scan in place."""
    a = torch.nn.functional.linear(x, weight, bias)
    return serial_scan_forward(a, u, a)


def serial_backward(grad_h, h, u):
    """The gradients (grad_a, grad_u) of `serial_scan_forward`, from the h that it wrote."""
    B, T, N = h.shape
    grad_a = torch.empty_like(h)
    grad_u = h.new_empty(B, N, dtype=torch.float32)
    strides = *grad_h.stride()[:2], *h.stride()[:2], *grad_a.stride()[:2]
    with torch.cuda.device_of(h):
        _serial_bwd_kernel[(triton.cdiv(B * N, BLOCK),)](
            grad_h, h, u, grad_a, grad_u, B, T, N, *strides, BLOCK=BLOCK, **OPTIONS
        )
    return grad_a, grad_u.sum(0).to(u.dtype)
