"""Every kernel compiled for every kind of GPU, on a machine that has none.

    python -m fastindrnn.kernels.aot [--target sm_90 gfx942 ...] [--processes 2]

prints what decides each kernel's speed: registers, bytes spilled, bytes of shared memory,
instructions, and how many of these the main loop issues for one element. TRITON_INTERPRET, which
replaces the compiler, must not be set.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .chunks import _scan_carry_kernel, _scan_fold_kernel
from .launch import BOUNDS, OPTIONS, plan
from .scan import _scan_bwd_kernel, _scan_fwd_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}


class Case(NamedTuple):
    """A kernel with a choice of everything that is fixed when it is compiled."""

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, Any]
    aligned: bool = True  # pointers and strides are multiples of 16, as with N = 512


class Report(NamedTuple):
    target: str
    dtype: str
    name: str
    registers: int
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    instructions: int
    per_element: float | None  # issued by the first loop, for each element it handles


def cases(lanes: int) -> list[Case]:
    """The recurrence of every dtype with relu, and every other option at least once."""
    plain = {"lengths_ptr": None, "cu_seqlens_ptr": None, "resets_ptr": None, "REVERSE": False}
    all_options = {"cu_seqlens_ptr": None, "REVERSE": True, "CHUNKS": 8}
    packed = {"lengths_ptr": None, "REVERSE": False, "CHUNKS": 8}
    one_chunk = {"start_ptr": None, "CHUNKS": 1}
    no_clip = {"clip": None, "clip_rest": None}
    forward_fold = {"h_ptr": None, **no_clip}

    found = []

    def add(name, kernel, dtype, nonlinearity, streams, *choices, aligned=True):
        cut = plan(4096, 1024, 512, ITEMSIZE[dtype], streams, 132, lanes)
        constants = {"ROWS": cut.rows, "BLOCK_N": cut.block_n}
        constants["LO"], constants["HI"] = BOUNDS[nonlinearity]
        if kernel is not _scan_fold_kernel:
            constants["TANH"] = nonlinearity == "tanh"
        for choice in choices:
            constants |= choice
        found.append(Case(f"{name} {nonlinearity}", kernel, dtype, constants, aligned))

    for dtype in ITEMSIZE:
        add("forward", _scan_fwd_kernel, dtype, "relu", 1, plain, one_chunk)
        add("backward, clip", _scan_bwd_kernel, dtype, "relu", 2, plain, one_chunk)
        add("fold", _scan_fold_kernel, dtype, "relu", 1, plain, forward_fold, {"CHUNKS": 8})
        add("fold backward, clip", _scan_fold_kernel, dtype, "relu", 2, plain, {"CHUNKS": 8})
    for dtype in ("fp32", "fp64"):
        add("forward", _scan_fwd_kernel, dtype, "tanh", 1, plain, one_chunk)
        add("backward", _scan_bwd_kernel, dtype, "tanh", 2, plain, one_chunk, no_clip)
        carry = {"BOUNDED": dtype == "fp32", "CHUNKS": 8, "ROWS": 8, "BLOCK_N": 32}
        found.append(Case("carry", _scan_carry_kernel, dtype, carry))
    add("forward, all options", _scan_fwd_kernel, "bf16", "hardtanh", 1, all_options)
    add("forward, packed", _scan_fwd_kernel, "bf16", "identity", 1, packed)
    add("backward, no clip", _scan_bwd_kernel, "bf16", "relu", 2, plain, one_chunk, no_clip)
    add("backward, all options", _scan_bwd_kernel, "bf16", "relu6", 2, all_options)
    add("backward, packed", _scan_bwd_kernel, "bf16", "identity", 2, packed, no_clip)
    add("fold, packed", _scan_fold_kernel, "bf16", "identity", 1, packed, forward_fold)
    add("fold, all options", _scan_fold_kernel, "bf16", "relu6", 1, all_options, forward_fold)
    add("fold backward, all options", _scan_fold_kernel, "bf16", "hardtanh", 2, all_options)
    add("fold backward, no clip", _scan_fold_kernel, "bf16", "relu", 2, all_options, no_clip)
    add("forward, odd N", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk, aligned=False)
    add("backward, odd N", _scan_bwd_kernel, "fp32", "relu", 2, plain, one_chunk, aligned=False)
    return found


def compile_case(case: Case, target: str) -> Report:
    """Compiles one case as its launch would, and reads off the result what it uses."""
    accumulator = "*fp64" if case.dtype == "fp64" else "*fp32"
    types = {
        "u_ptr": "*fp32",
        "lengths_ptr": "*i64",
        "cu_seqlens_ptr": "*i64",
        "resets_ptr": "*i1",
        "start_ptr": accumulator,
        "map_ptr": accumulator,
        "grad_u_ptr": accumulator,
        "clip": "fp32",
        "clip_rest": "fp32",
    }
    signature, hints = {}, {}
    for position, name in enumerate(case.kernel.arg_names):
        kind = types.get(name, f"*{case.dtype}" if name.endswith("_ptr") else "i32")
        signature[name] = "constexpr" if name in case.constants else kind
        # Without these hints loads are one element wide.
        if case.aligned and signature[name] not in ("constexpr", "fp32") and name != "T":
            hints[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, case.constants, hints)
    compiled = triton.compile(source, target=TARGETS[target], options=OPTIONS)
    if target.startswith("sm_"):
        registers, spilled, opcodes, loop = _read_cubin(compiled.asm["cubin"])
    else:
        registers, spilled, opcodes, loop = _read_amdgcn(compiled.asm["amdgcn"])
    per_element = None
    if loop and case.kernel is not _scan_carry_kernel:
        lanes = TARGETS[target].warp_size
        per_element = loop * lanes / (case.constants["ROWS"] * case.constants["BLOCK_N"])
    shared = compiled.metadata.shared
    return Report(target, case.dtype, case.name, registers, spilled, shared, opcodes, per_element)


def _read_cubin(cubin: bytes) -> tuple[int, int, int, int | None]:
    """Registers, bytes spilled, instructions, and instructions of the first loop."""
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [tool, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)
    addresses = [int(address, 16) for address, _ in lines]
    jumps = [re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text) for _, text in lines]
    targets = [jump and addresses.index(int(jump.group(1), 16)) for jump in jumps]
    return used["REG"], used["STACK"] + used["LOCAL"], len(lines), _first_loop(targets)


def _read_amdgcn(assembly: str) -> tuple[int, int, int, int | None]:
    """Like `_read_cubin`."""
    used = {
        key: int(value)
        for key, value in re.findall(r"\.(vgpr_count|private_segment_fixed_size): +(\d+)", assembly)
    }
    lines, labels = [], {}
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label.group(1)] = len(lines)
        elif re.match(r"\t(s|v|ds|global|buffer|flat)_", line):
            lines.append(line)
    jumps = [re.search(r"s_c?branch\w*\s+(\.LBB\w+)", line) for line in lines]
    targets = [jump and labels[jump.group(1)] for jump in jumps]
    return (
        used["vgpr_count"], used["private_segment_fixed_size"], len(lines), _first_loop(targets)
    )  # fmt: skip


def _first_loop(targets: list[int | None]) -> int | None:
    """Length of the first run of instructions that ends in a jump to its begin, or above."""
    for position, target in enumerate(targets):
        # The last instruction of a program jumps to itself.
        if target is not None and target < position:
            return position - target + 1
    return None


def compile_all(targets: list[str], processes: int = 2) -> list[Report]:
    """Every case for each of these targets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 replaces Triton's compiler: unset it")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        jobs = [pool.submit(_compile, t, i) for t in targets for i in range(len(cases(32)))]
        return [job.result() for job in jobs]


def _compile(target: str, position: int) -> Report:
    return compile_case(cases(TARGETS[target].warp_size)[position], target)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastindrnn.kernels.aot", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    print("triton", triton.__version__)
    print("target  dtype  kernel                                registers spilled shared "
          "instructions per element")  # fmt: skip
    for report in compile_all(options.target, options.processes):
        per_element = "" if report.per_element is None else f"{report.per_element:.1f}"
        print(
            f"{report.target:7} {report.dtype:6} {report.name:38}{report.registers:9}"
            f"{report.spilled:8}{report.shared:7}{report.instructions:13}{per_element:>12}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
