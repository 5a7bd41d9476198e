"""The kernels and targets that are compiled, with all that is fixed when a kernel is compiled."""

from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget

from ...tensors import BOUNDS
from ..chunks import _scan_propagate_kernel, _scan_summarize_kernel
from ..devices import CHAINS_ON_AMD
from ..launch_scan import COMPILER_OPTIONS
from ..model import FAMILIES, Device, compiler_options_of, constants_of, pick_tile, plan
from ..projection import _fused_fwd_kernel
from ..projection_backward import _fused_bwd_kernel
from ..scan import _scan_bwd_kernel, _scan_fwd_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
FAMILY = {
    "sm_80": "mma",
    "sm_90": "wgmma",
    "sm_100": "tcgen05",
    "sm_120": "mma",
    "gfx942": "mfma",
    "gfx950": "mfma",
}
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}


class Case(NamedTuple):
    """A kernel with a choice of everything that is fixed when it is compiled."""

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, Any]
    aligned: bool = True  # strides are multiples of 16, as with N = 512; pointers always are
    options: dict[str, Any] = COMPILER_OPTIONS


def cases(target: str) -> list[Case]:
    """Every kernel with every dtype it takes, and every option at least once."""
    return scan_cases(target) + fused_cases(target)


def fused_cases(target: str) -> list[Case]:
    """The fused kernels with the tiles that the model picks."""
    found, family = [], FAMILY[target]

    def add(name, dtype, K=1024, nonlinearity="relu", backward=False, aligned=True, **choices):
        kernel = _fused_bwd_kernel if backward else _fused_fwd_kernel
        given = choices.pop("given", ())
        chained = "ticket_ptr" in given
        tile = pick_tile(family, 512, K, ITEMSIZE[dtype], backward, aligned, chained)
        lo, hi = BOUNDS[nonlinearity]
        constants = {
            "LO": lo,
            "HI": hi,
            "REVERSE": False,
            "DIRECTIONS": 1,
            **constants_of(tile, K, TARGETS[target].warp_size),
            "PRECISION": "ieee" if family == "mfma" else "tf32",
            # Weights are contiguous, and in the backward transposed.
            "stride_wn" if backward else "stride_wk": 1,
        }
        absent = dict.fromkeys(
            ("h0_ptr", "g_n_ptr", "lengths_ptr", "cu_seqlens_ptr", "resets_ptr", "ticket_ptr",
             "states_ptr", "clip")
        )  # fmt: skip
        constants |= {key: value for key, value in absent.items() if key not in given}
        constants |= choices
        constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
        found.append(
            Case(
                f"{name} {nonlinearity}",
                kernel,
                dtype,
                constants,
                aligned,
                compiler_options_of(tile),
            )
        )

    chain = ("ticket_ptr", "states_ptr") if family != "mfma" or CHAINS_ON_AMD else ()
    unchained = ("h0_ptr", "g_n_ptr", "lengths_ptr", "resets_ptr", "clip")
    everything = chain + unchained
    add("fused", "bf16")
    add("fused, narrow", "bf16", K=128)
    add("fused, both directions", "fp16", DIRECTIONS=2, REVERSE=True)
    add("fused, matrix units", "fp32")
    add("fused, odd K and N", "bf16", K=77, aligned=False)
    if chain:
        add("fused, chained", "bf16", given=chain)
        add("fused, chained and narrow", "bf16", K=128, given=chain)
    add("fused backward, narrow", "bf16", K=128, backward=True, given=("clip",))
    add("fused, all options", "bf16", 1024, "hardtanh", REVERSE=True, given=everything)
    add("fused backward", "bf16", backward=True)
    add("fused backward, clip", "bf16", backward=True, given=("clip",))
    add("fused backward, matrix units", "fp32", backward=True, given=("clip",))
    add("fused backward, all options", "bf16", 1024, "relu6", True, REVERSE=True, given=everything)
    # Weights of several blocks that stay: the widest, half of that, an odd number of blocks.
    K, back_K = FAMILIES[family].resident // 2, FAMILIES[family].resident_backward // 2
    add("fused, resident", "bf16", K)
    add("fused, resident, half as wide", "bf16", K // 2)
    add("fused, resident, odd number of blocks", "bf16", K * 3 // 4)
    add("fused, resident, matrix units", "fp32", K // 2)
    add("fused, resident, both directions", "fp16", K, DIRECTIONS=2, REVERSE=True)
    add("fused, resident, all options", "bf16", K - 8, "hardtanh", REVERSE=True, given=unchained)
    if back_K:
        add("fused backward, resident, clip", "bf16", back_K, backward=True, given=("clip",))
        add(
            "fused backward, resident, all options", "bf16", back_K - 8, "relu6", True,
            REVERSE=True, given=unchained,
        )  # fmt: skip
    return found


def scan_cases(target: str) -> list[Case]:
    """The recurrence of every dtype with relu, and every other option at least once."""
    plain = {"lengths_ptr": None, "cu_seqlens_ptr": None, "resets_ptr": None, "REVERSE": False}
    all_options = {"cu_seqlens_ptr": None, "REVERSE": True, "CHUNKS": 8}
    packed = {"lengths_ptr": None, "REVERSE": False, "CHUNKS": 8}
    one_chunk = {"start_ptr": None, "CHUNKS": 1}
    no_clip = {"clip": None, "clip_rest": None}
    of_forward = {"h_ptr": None, **no_clip}

    found = []
    device = Device(FAMILY[target], 132, TARGETS[target].warp_size, 0)

    def add(
        name, kernel, dtype, nonlinearity, tensors_read, *choices, aligned=True, vector=1, B=4096
    ):
        itemsize = ITEMSIZE[dtype]
        vector = 16 // itemsize if aligned else vector
        planned = plan(device, B, 1024, 512, itemsize, tensors_read, vector * itemsize)
        constants = {"ROWS": planned.rows, "STAGES": planned.stages}
        constants |= {"BLOCK_N": planned.block_n, "EVEN_N": aligned, "VECTOR": vector}
        constants["LO"], constants["HI"] = BOUNDS[nonlinearity]
        if kernel is not _scan_summarize_kernel:
            constants["TANH"] = nonlinearity == "tanh"
        for choice in choices:
            constants |= choice
        found.append(Case(f"{name} {nonlinearity}", kernel, dtype, constants, aligned))

    for dtype in ITEMSIZE:
        add("forward", _scan_fwd_kernel, dtype, "relu", 1, plain, one_chunk)
        add("backward, clip", _scan_bwd_kernel, dtype, "relu", 2, plain, one_chunk)
        add("summarize", _scan_summarize_kernel, dtype, "relu", 1, plain, of_forward, {"CHUNKS": 8})
        add(
            "summarize backward, clip",
            _scan_summarize_kernel,
            dtype,
            "relu",
            2,
            plain,
            {"CHUNKS": 8},
        )
    for dtype in ("fp32", "fp64"):
        add("forward", _scan_fwd_kernel, dtype, "tanh", 1, plain, one_chunk)
        add("backward", _scan_bwd_kernel, dtype, "tanh", 2, plain, one_chunk, no_clip)
        constants: dict[str, Any] = {"BOUNDED": dtype == "fp32", "cu_seqlens_ptr": None}
        constants |= {"CHUNKS": 8, "ROWS": 16, "GROUP": 8, "BLOCK_N": 32}
        found.append(Case("propagate", _scan_propagate_kernel, dtype, constants))
    add("forward, all options", _scan_fwd_kernel, "bf16", "hardtanh", 1, all_options)
    add("forward, packed", _scan_fwd_kernel, "bf16", "identity", 1, packed)
    add("backward, no clip", _scan_bwd_kernel, "bf16", "relu", 2, plain, one_chunk, no_clip)
    add("backward, all options", _scan_bwd_kernel, "bf16", "relu6", 2, all_options)
    add("backward, packed", _scan_bwd_kernel, "bf16", "identity", 2, packed, no_clip)
    add("summarize, packed", _scan_summarize_kernel, "bf16", "identity", 1, packed, of_forward)
    add(
        "summarize, all options",
        _scan_summarize_kernel,
        "bf16",
        "relu6",
        1,
        all_options,
        of_forward,
    )
    add(
        "summarize backward, all options",
        _scan_summarize_kernel,
        "bf16",
        "hardtanh",
        2,
        all_options,
    )
    add(
        "summarize backward, no clip",
        _scan_summarize_kernel,
        "bf16",
        "relu",
        2,
        all_options,
        no_clip,
    )
    add("forward, odd N", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk, aligned=False)
    add("backward, odd N", _scan_bwd_kernel, "fp32", "relu", 2, plain, one_chunk, aligned=False)
    add("forward, N of 100", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk,
        aligned=False, vector=4)  # fmt: skip
    add("forward, N of 102", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk,
        aligned=False, vector=2)  # fmt: skip
    for dtype in ("fp32", "bf16"):
        add("forward, few", _scan_fwd_kernel, dtype, "relu", 1, plain, one_chunk, B=16)
        add("backward, few, clip", _scan_bwd_kernel, dtype, "relu", 2, plain, one_chunk, B=16)
    return found
