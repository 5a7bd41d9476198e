"""The design of the published CUDA kernels, written anew in Triton: what the scan is compared with.

    forward   h_t = relu(a_t + u * h_{t-1})                      Li et al. 2018, arXiv 1803.04831
    backward  d_t = g_t + u * d_{t+1} where h_t > 0, else 0;  grad_u = sum over t of d_t * h_{t-1}

A thread owns one channel of one sequence. At each time step it loads one value, does one
multiply-add and a maximum, and stores one value: one load of 2 or 4 bytes is in flight in each
thread, and its latency is paid T times. Blocks are of 256 threads. State and sums are float32. It
is kept as plain as its description on purpose: no rows in flight, no chunks of time. Floor: 2*B*T*N
elements read and written in the forward, 3*B*T*N in the backward.

Tensors (B, T, N) are contiguous, T is at least 1. Only h is saved for the backward; h_0 is 0.
"""

import torch
import triton
import triton.language as tl

BLOCK = 256  # channels of a block, one a thread
OPTIONS = {"num_warps": BLOCK // 32, "num_stages": 1, "enable_fp_fusion": True}


@triton.jit
def _channels(B, T, N, BLOCK: tl.constexpr):
    """Of each thread: its channel among B*N, the offset at t = 0, whether the channel exists."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return channel, (channel // N).to(tl.int64) * T * N + channel % N, channel < B * N


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
    channel, offs, exists = _channels(B, T, N, BLOCK)
    u = tl.load(u_ptr + channel % N).to(tl.float32)
    h = tl.zeros([BLOCK], tl.float32)
    for _ in range(T):
        z = tl.load(a_ptr + offs, mask=exists).to(tl.float32) + u * h
        h = tl.where(z > 0.0, z, 0.0)
        tl.store(h_ptr + offs, h, mask=exists)
        offs += N


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
    channel, offs, exists = _channels(B, T, N, BLOCK)
    offs += (T - 1).to(tl.int64) * N
    u = tl.load(u_ptr + channel % N).to(tl.float32)
    d = tl.zeros([BLOCK], tl.float32)
    grad_u = tl.zeros([BLOCK], tl.float32)
    h = tl.load(h_ptr + offs, mask=exists).to(tl.float32)
    for t in range(T - 1, -1, -1):
        before = tl.load(h_ptr + offs - N, mask=exists & (t > 0), other=0.0).to(tl.float32)
        g = tl.load(g_ptr + offs, mask=exists).to(tl.float32)
        d = tl.where(h > 0.0, g + u * d, 0.0)
        tl.store(d_ptr + offs, d, mask=exists)
        grad_u += d * before
        h = before
        offs -= N
    tl.store(grad_u_ptr + channel, grad_u, mask=exists)


def launch(kernel, *tensors):
    """tensors: the kernel's, a tensor (B, T, N) first."""
    B, T, N = tensors[0].shape
    with torch.cuda.device_of(tensors[0]):
        kernel[(triton.cdiv(B * N, BLOCK),)](*tensors, B, T, N, BLOCK=BLOCK, **OPTIONS)


class SerialScan(torch.autograd.Function):
    """h (B, T, N) of a (B, T, N) and u (N,)."""

    @staticmethod
    def forward(ctx, a, u):
        h = torch.empty_like(a)
        launch(_serial_fwd_kernel, a, u, h)
        ctx.save_for_backward(h, u)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        h, u = ctx.saved_tensors
        grad_a, grad_u = torch.empty_like(h), h.new_empty(len(h), len(u), dtype=torch.float32)
        launch(_serial_bwd_kernel, grad_h.contiguous(), h, u, grad_a, grad_u)
        return grad_a, grad_u.sum(0).to(u.dtype)
