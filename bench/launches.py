"""Small launches of the Triton kernels, of odd sizes and with most options, for compute-sanitizer.

    compute-sanitizer --tool memcheck python3 -m bench.launches cuda scan layer

The tests check values; compute-sanitizer checks where the kernels read and write.
"""

import itertools
import sys

import torch

from fastindrnn.kernels import gpu

SHAPES = (3, 70, 40, 71), (1, 300, 64, 64)  # B, T, features, N


def launch_all(device, kinds, dtypes=(torch.bfloat16, torch.float32), shapes=SHAPES):
    torch.manual_seed(0)
    for dtype, (B, T, K, N), reverse in itertools.product(dtypes, shapes, (False, True)):
        with torch.device(device):
            drawn = (B, T, K), (N, K), (N,), (B, N), *[(B, T, N)] * 3
            x, weight, bias, h0, a, grad_h, h = (torch.randn(*d, dtype=dtype) for d in drawn)
            u, lengths = torch.rand(N), torch.randint(0, T + 1, (B,))
            options = {"lengths": lengths, "resets": torch.rand(B, T) < 0.1, "reverse": reverse}
        for chunks in (1, 4) if "scan" in kinds else ():
            gpu.scan_forward(a, u, h0, h, **options, chunks=chunks)
            gpu.scan_backward(grad_h, None, h, u, h0, **options, grad_clip=1.0, chunks=chunks)
        for strategy in ("fused", "split") if "layer" in kinds else ():
            for more in ({}, options):
                gpu.indrnn_forward(x, weight, bias, u, h0, h, **more, strategy=strategy)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    launch_all(sys.argv[1], sys.argv[2:])
    print("launched", *sys.argv[2:])
