"""Every kernel compiled for every kind of GPU, on a machine that has none.

    python -m fastindrnn.kernels.gpu.aot [--target sm_90 gfx942 ...] [--processes 2] [--out FILE]

prints what decides each kernel's speed: registers, bytes spilled, bytes of shared memory, barriers,
instructions, and how many of these the main loop issues for one element; of a fused kernel those
outside of the loop over K, which compute no product. Where the compiler crashes or raises an error,
the line of the kernel says so, and the exit status is 1. TRITON_INTERPRET, which replaces the
compiler, must not be set.
"""
