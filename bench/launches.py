"""Small launches of the Triton kernels, of odd sizes and with every option, for compute-sanitizer.

    compute-sanitizer --tool memcheck python3 -m bench.launches cuda scan layer

The tests check values; here it is where the kernels read and write.
"""

import sys

import torch

from fastindrnn.kernels import gpu

SHAPES = (3, 70, 40, 71), (1, 300, 64, 64)  # B, T, features, N


def launch_all(device, kinds, dtypes=(torch.bfloat16, torch.float32), shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    for dtype in dtypes:

        def normal(*shape, dtype=dtype):
            return torch.randn(*shape, generator=generator).to(device, dtype)

        for B, T, K, N in shapes:
            x, weight, bias, h0 = normal(B, T, K), normal(N, K), normal(N), normal(B, N)
            a, grad_h, h = (normal(B, T, N) for _ in range(3))
            u = torch.rand(N, generator=generator).to(device)
            lengths = torch.randint(0, T + 1, (B,), generator=generator).to(device)
            resets = (torch.rand(B, T, generator=generator) < 0.1).to(device)
            for reverse in (False, True):
                options = {"lengths": lengths, "resets": resets, "reverse": reverse}
                for chunks in (1, 4) if "scan" in kinds else ():
                    gpu.scan_forward(a, u, h0, h, **options, chunks=chunks)
                    options_back = options | {"grad_clip": 1.0, "chunks": chunks}
                    gpu.scan_backward(grad_h, None, h, u, h0, **options_back)
                for strategy in ("fused", "split") if "layer" in kinds else ():
                    for more in ({}, options):
                        gpu.indrnn_forward(x, weight, bias, u, h0, h, **more, strategy=strategy)
            if device == "cuda":
                torch.cuda.synchronize()


if __name__ == "__main__":
    launch_all(sys.argv[1], sys.argv[2:])
    print("launched", *sys.argv[2:])
