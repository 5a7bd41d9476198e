"""Every kernel compiled for every kind of GPU, on a machine that has none.

    python -m fastindrnn.kernels.gpu.aot [--target sm_90 gfx942 ...] [--processes 2] [--out FILE]

prints what decides each kernel's speed: registers, bytes spilled, bytes of shared memory, barriers,
instructions, and how many of these the main loop issues for one element; of a fused kernel those
outside of the loop over K, which compute no product. Where the compiler crashes or raises an error,
the line of the kernel says so, and the exit status is 1. TRITON_INTERPRET, which replaces the
compiler, must not be set.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from .chunks import _scan_carry_kernel, _scan_fold_kernel
from .launch_projection import CHAINS_ON_AMD
from .launch_scan import BOUNDS, OPTIONS
from .model import FAMILIES, Device, constants_of, options_of, plan, tile
from .projection import _fused_bwd_kernel, _fused_fwd_kernel
from .scan import _scan_bwd_kernel, _scan_fwd_kernel

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
# Instructions that are no arithmetic: products, stores, loads, barriers, shuffles.
OTHER = "MMA|mfma|ST[GS]|LD[GS]|BAR|SHFL|store|load|ds_|barrier"
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}


class Case(NamedTuple):
    """A kernel with a choice of everything that is fixed when it is compiled."""

    name: str
    kernel: Any
    dtype: str
    constants: dict[str, Any]
    aligned: bool = True  # strides are multiples of 16, as with N = 512; pointers always are
    options: dict[str, Any] = OPTIONS


class Report(NamedTuple):
    target: str
    dtype: str
    name: str
    registers: int
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    barriers: int
    instructions: int
    per_element: float | None


class Failure(NamedTuple):
    """A kernel that the compiler did not compile."""

    target: str
    dtype: str
    name: str
    reason: str  # "SIGSEGV", or the error in a line


def cases(target: str) -> list[Case]:
    """Every kernel with every dtype it takes, and every option at least once."""
    return scan_cases(target) + fused_cases(target)


def fused_cases(target: str) -> list[Case]:
    """The fused kernels as the model cuts them."""
    found, family = [], FAMILY[target]

    def add(name, dtype, K=1024, nonlinearity="relu", backward=False, aligned=True, **choices):
        kernel = _fused_bwd_kernel if backward else _fused_fwd_kernel
        given = choices.pop("given", ())
        chained = "ticket_ptr" in given
        cut = tile(family, 512, K, ITEMSIZE[dtype], backward, aligned, chained)
        lo, hi = BOUNDS[nonlinearity]
        constants = {
            "LO": lo,
            "HI": hi,
            "REVERSE": False,
            "HALVES": 1,
            **constants_of(cut, K, TARGETS[target].warp_size),
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
            Case(f"{name} {nonlinearity}", kernel, dtype, constants, aligned, options_of(cut))
        )

    chain = ("ticket_ptr", "states_ptr") if family != "mfma" or CHAINS_ON_AMD else ()
    unchained = ("h0_ptr", "g_n_ptr", "lengths_ptr", "resets_ptr", "clip")
    everything = chain + unchained
    add("fused", "bf16")
    add("fused, narrow", "bf16", K=128)
    add("fused, both directions", "fp16", HALVES=2, REVERSE=True)
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
    add("fused, resident, both directions", "fp16", K, HALVES=2, REVERSE=True)
    add(
        "fused, resident, all options",
        "bf16",
        K - 8,
        "hardtanh",
        REVERSE=True,
        given=everything[len(chain) :],
    )
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
    forward_fold = {"h_ptr": None, **no_clip}

    found = []
    device = Device(FAMILY[target], 132, TARGETS[target].warp_size, 0)

    def add(name, kernel, dtype, nonlinearity, streams, *choices, aligned=True, vector=1, B=4096):
        itemsize = ITEMSIZE[dtype]
        vector = 16 // itemsize if aligned else vector
        cut = plan(device, B, 1024, 512, itemsize, streams, vector * itemsize)
        constants = {"ROWS": cut.rows, "STAGES": cut.stages, "BLOCK_N": cut.block_n}
        constants |= {"EVEN_N": aligned, "VECTOR": vector}
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
        carry: dict[str, Any] = {"BOUNDED": dtype == "fp32", "CHUNKS": 8, "cu_seqlens_ptr": None}
        carry |= {"ROWS_OF_SCAN": 16, "ROWS": 8, "BLOCK_N": 32}
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
    add("forward, N of 100", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk,
        aligned=False, vector=4)  # fmt: skip
    add("forward, N of 102", _scan_fwd_kernel, "bf16", "relu", 1, plain, one_chunk,
        aligned=False, vector=2)  # fmt: skip
    for dtype in ("fp32", "bf16"):
        add("forward, few", _scan_fwd_kernel, dtype, "relu", 1, plain, one_chunk, B=16)
        add("backward, few, clip", _scan_bwd_kernel, dtype, "relu", 2, plain, one_chunk, B=16)
    return found


def compile_as_launched(case: Case, target: str) -> Any:
    """Compiles one case as Triton does when it is launched with tensors below 2 GiB.

    Triton compiles for what it can tell of the arguments: integers that are 1, multiples of 16,
    and on AMD the size of tensors, by which it chooses among its loads.
    """
    accumulator = "*fp64" if case.dtype == "fp64" else "*fp32"
    types = {
        "u_ptr": "*fp32",
        "lengths_ptr": "*i64",
        "cu_seqlens_ptr": "*i64",
        "resets_ptr": "*i1",
        "start_ptr": accumulator,
        "map_ptr": accumulator,
        "clip": "fp32",
        "clip_rest": "fp32",
        "ticket_ptr": "*i32",
        "states_ptr": "*i64",
        "sums_ptr": accumulator,
    }
    backend = make_backend(TARGETS[target])
    of_tensors = backend.parse_attr("DS" if TARGETS[target].backend == "hip" else "D")
    of_integers = backend.parse_attr("D" if case.aligned else "")
    constants = dict(case.constants)
    if "stride_rt" in case.kernel.arg_names and "resets_ptr" not in constants:
        constants["stride_rt"] = 1
    signature, hints = {}, {}
    for position, name in enumerate(case.kernel.arg_names):
        kind = types.get(name, f"*{case.dtype}" if name.endswith("_ptr") else "i32")
        signature[name] = "constexpr" if name in constants else kind
        if signature[name].startswith("*"):
            hints[(position,)] = of_tensors
        elif signature[name] == "i32" and name != "T":
            hints[(position,)] = of_integers
    source = ASTSource(case.kernel, signature, constants, hints)
    return triton.compile(source, target=TARGETS[target], options=case.options)


def compile_case(case: Case, target: str) -> Report:
    """Compiles one case, and reads off the result what it uses."""
    compiled = compile_as_launched(case, target)
    registers, spilled, lines, targets = read_assembly(compiled)
    return Report(
        target,
        case.dtype,
        case.name,
        registers,
        spilled,
        compiled.metadata.shared,
        sum("BAR.SYNC" in line or "s_barrier" in line for line in lines),
        len(lines),
        _per_element(case, lines, targets, TARGETS[target].warp_size),
    )


def _per_element(case, lines, targets, lanes):
    """Instructions of the main loop, for each element it handles."""
    # What stands behind the end of the program waits for the tensor memory, and jumps back.
    stop = max(i for i, line in enumerate(lines) if re.search(r"\bEXIT\b|s_endpgm", line))
    constants, loops = case.constants, loops_of(targets[:stop])
    if case.kernel is _scan_carry_kernel or not loops:
        return None
    if "ROWS" in constants:
        elements = constants["ROWS"] * constants["BLOCK_N"] / lanes
        lengths = [end - begin for begin, end in loops if end - begin >= elements]
        # A fold has a second loop, for channels that grow, which does more.
        length = min(lengths) if case.kernel is _scan_fold_kernel else lengths[0]
        return length / elements
    # The loop over tiles without those inside: over K, waiting for a tile before, and over the
    # lanes, which runs where a run grows.
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    outside = set(range(begin, end))
    for loop in loops:
        # What is nearly as long is the same loop, which AMD's compiler continues from two places.
        if 2 * (loop[1] - loop[0]) < end - begin:
            outside -= set(range(*loop))
    elements = constants["BLOCK_N"] * constants["BLOCK_T"] / lanes / case.options["num_warps"]
    # Nor the block of arithmetic that is jumped over: the upper ends, where a u is negative.
    counted = set(outside)
    jumps = [(i + 1, to) for i, to in enumerate(targets) if to and begin <= i < to < end]
    for jump in jumps:
        block = sorted(outside & set(range(*jump)))
        is_arithmetic = not re.search(OTHER, "".join(lines[i] for i in block))
        if len(block) >= elements and is_arithmetic:
            counted -= set(block)
    return sum(re.search("MMA|mfma", lines[i]) is None for i in counted) / elements


def read_assembly(compiled: Any) -> tuple[int, int, list[str], list[int | None]]:
    """Registers, bytes spilled, instructions, and for each the one that it may jump to."""
    if "cubin" in compiled.asm:
        return _read_cubin(compiled.asm["cubin"])
    return _read_amdgcn(compiled.asm["amdgcn"])


def _read_cubin(cubin: bytes) -> tuple[int, int, list[str], list[int | None]]:
    """`read_assembly` of NVIDIA's."""
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
    position = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    jumps = [re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text) for _, text in lines]
    targets = [jump and position[int(jump.group(1), 16)] for jump in jumps]
    return used["REG"], used["STACK"] + used["LOCAL"], [text for _, text in lines], targets


def _read_amdgcn(assembly: str) -> tuple[int, int, list[str], list[int | None]]:
    """`read_assembly` of AMD's."""
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
    return used["vgpr_count"], used["private_segment_fixed_size"], lines, targets


def loops_of(targets: list[int | None]) -> list[tuple[int, int]]:
    """Runs of instructions that end in a jump to their begin: begin and last end, in order."""
    # The last instruction of a program jumps to itself.
    ends = {to: i + 1 for i, to in enumerate(targets) if to is not None and to < i}
    return sorted(ends.items(), key=lambda loop: loop[1])


def compile_all(targets: list[str], processes: int = 2) -> list[Report | Failure]:
    """Every case for each of these targets, in this many processes."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 replaces Triton's compiler: unset it")
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for _ in range(processes):
        idle.put(_Worker())

    def compile_one(target: str, position: int) -> Report | Failure:
        worker = idle.get()
        try:
            return worker.compile_case(target, position)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(processes) as pool:
        jobs = [pool.submit(compile_one, t, i) for t in targets for i in range(len(cases(t)))]
        reports = [job.result() for job in jobs]
    for _ in range(processes):
        idle.get().stop()
    return reports


class _Worker:
    """A process that compiles one case at a time, and another one after each that crashed."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, of_process = context.Pipe()
        self._process = context.Process(target=_serve, args=(of_process,), daemon=True)
        self._process.start()
        of_process.close()  # so that nobody holds that end when the process is gone

    def compile_case(self, target: str, position: int) -> Report | Failure:
        try:
            self._connection.send((target, position))
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
        code = self._process.exitcode
        assert code is not None, "it has ended"
        self._start()
        case = cases(target)[position]
        reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Failure(target, case.dtype, case.name, reason)

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join()


def _serve(connection) -> None:
    """Compiles what is asked for, until it is None."""
    while request := connection.recv():
        target, position = request
        case = cases(target)[position]
        try:
            report: Report | Failure = compile_case(case, target)
        except Exception as error:  # whatever the compiler raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            report = Failure(target, case.dtype, case.name, reason)
        connection.send(report)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastindrnn.kernels.gpu.aot", description=__doc__
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    options = parser.parse_args(arguments)
    print("triton", triton.__version__)
    print(f"{'target':7} {'dtype':6} {'kernel':39}registers spilled shared barriers instructions "
          "per element")  # fmt: skip
    reports = compile_all(options.target, options.processes)
    for report in reports:
        line = f"{report.target:7} {report.dtype:6} {report.name:39}"
        if isinstance(report, Failure):
            print(f"{line} not compiled: {report.reason}")
            continue
        per_element = "" if report.per_element is None else f"{report.per_element:.1f}"
        print(
            f"{line}{report.registers:9}{report.spilled:8}{report.shared:7}{report.barriers:9}"
            f"{report.instructions:13}{per_element:>12}"
        )
    failures = [report for report in reports if isinstance(report, Failure)]
    spilled = sum(isinstance(report, Report) and report.spilled > 0 for report in reports)
    print(
        f"{len(reports)} kernels: {len(reports) - len(failures)} compiled, {spilled} spill, "
        f"{len(failures)} not compiled"
    )
    if options.out:
        rows = [report._asdict() for report in reports]
        options.out.write_text(
            json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
