"""The design of the published CUDA kernels, written anew in Triton: what the scan is compared with.

    forward   h_t = relu(a_t + u * h_{t-1})                      Li et al. 2018, arXiv 1803.04831
    backward  d_t = g_t + u * d_{t+1} where h_t > 0, else 0

A thread owns one channel of one sequence. At each time step it loads one value, does one
multiply-add and a maximum, and stores one value: one load of 2 or 4 bytes is in flight in each
thread, and its latency is paid T times. Blocks are of 256 threads. State and sums are float32. It
is kept as plain as its description on purpose: no rows in flight, no chunks of time.

Tensors (B, T, N) are contiguous, T is at least 1. Only h is saved for the backward; h_0 is 0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 256  # channels of a block, one a thread
OPTIONS = {"num_warps": BLOCK // 32, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit
def _channels(B, N, BLOCK: tl.constexpr):
    """Sequence and channel of each thread, and which threads store. Those past the last channel
    load that channel too, because a load without a mask is one instruction."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    owned = tl.minimum(index, B * N - 1)
    return (owned // N).to(tl.int64), owned % N, index < B * N


@triton.jit(do_not_specialize=["T"])
def _serial_fwd_kernel(
    a_ptr,  # [B, T, N]
    u_ptr,  # [N]
    h_ptr,  # [B, T, N]
    B,
    T,
    N,
    BLOCK: tl.constexpr,
):
    """h_t = relu(a_t + u * h_{t-1}). Floor: a read and h written once, 2*B*T*N elements."""
    b, offs_n, stores = _channels(B, N, BLOCK)
    u = tl.load(u_ptr + offs_n).to(tl.float32)
    offs = b * T * N + offs_n
    h = tl.zeros([BLOCK], tl.float32)
    for _ in range(T):
        z = tl.load(a_ptr + offs).to(tl.float32) + u * h
        h = tl.where(z > 0.0, z, 0.0)
        tl.store(h_ptr + offs, h, mask=stores)
        offs += N


@triton.jit
def _gradient(g_ptrs, u, d, h):
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
    BLOCK: tl.constexpr,
):
    """d_t = g_t + u * d_{t+1} where h_t > 0, else 0; grad_u = sum over t of d_t * h_{t-1}.

    Floor: g and h read and d written once, 3*B*T*N elements.
    """
    b, offs_n, stores = _channels(B, N, BLOCK)
    u = tl.load(u_ptr + offs_n).to(tl.float32)
    offs = (b * T + T - 1) * N + offs_n
    d = tl.zeros([BLOCK], tl.float32)
    grad_u = tl.zeros([BLOCK], tl.float32)
    h = tl.load(h_ptr + offs).to(tl.float32)
    for _ in range(T - 1):
        before = tl.load(h_ptr + offs - N).to(tl.float32)
        d = _gradient(g_ptr + offs, u, d, h)
        tl.store(d_ptr + offs, d, mask=stores)
        grad_u += d * before
        h = before
        offs -= N
    tl.store(d_ptr + offs, _gradient(g_ptr + offs, u, d, h), mask=stores)  # before it, h_0 is 0
    tl.store(grad_u_ptr + b * N + offs_n, grad_u, mask=stores)


class SerialScan(torch.autograd.Function):
    """h (B, T, N) of a (B, T, N) and u (N,)."""

    @staticmethod
    def forward(ctx, a, u):
        B, T, N = a.shape
        h = torch.empty_like(a)
        with torch.cuda.device_of(a):
            _serial_fwd_kernel[(triton.cdiv(B * N, BLOCK),)](
                a, u, h, B, T, N, BLOCK=BLOCK, **OPTIONS
            )
        ctx.save_for_backward(h, u)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        h, u = ctx.saved_tensors
        B, T, N = h.shape
        grad_a, grad_u = torch.empty_like(h), h.new_empty(B, N, dtype=torch.float32)
        with torch.cuda.device_of(h):
            _serial_bwd_kernel[(triton.cdiv(B * N, BLOCK),)](
                grad_h.contiguous(), h, u, grad_a, grad_u, B, T, N, BLOCK=BLOCK, **OPTIONS
            )
        return grad_a, grad_u.sum(0).to(u.dtype)
