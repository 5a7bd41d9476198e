"""What a compiled kernel uses, and its instructions, read off NVIDIA's SASS and AMD's ISA."""

import os
import re
import subprocess
import tempfile
from typing import Any, NamedTuple

import triton

from ..chunks import _scan_propagate_kernel, _scan_summarize_kernel
from .cases import Case

# Products, stores, loads, barriers, shuffles.
NO_ARITHMETIC = "MMA|mfma|ST[GS]|LD[GS]|BAR|SHFL|store|load|ds_|barrier"


class Assembly(NamedTuple):
    registers: int
    spilled: int  # bytes a thread
    instructions: list[str]
    jumps: list[int | None]  # for each instruction, the position of the one that it may jump to


def read_assembly(compiled: Any) -> Assembly:
    """The assembly of a kernel that `triton.compile` returned."""
    if "cubin" in compiled.asm:
        return _read_cubin(compiled.asm["cubin"])
    return _read_amdgcn(compiled.asm["amdgcn"])


def _read_cubin(cubin: bytes) -> Assembly:
    """`read_assembly` for NVIDIA."""
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
    instructions = [text for _, text in lines]
    return Assembly(used["REG"], used["STACK"] + used["LOCAL"], instructions, targets)


def _read_amdgcn(assembly: str) -> Assembly:
    """`read_assembly` for AMD."""
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
    return Assembly(used["vgpr_count"], used["private_segment_fixed_size"], lines, targets)


def loops_of(jumps: list[int | None]) -> list[tuple[int, int]]:
    """Instructions that end in a jump back to the first of them, as (first, last + 1), in order."""
    # The last instruction of a program jumps to itself.
    ends = {to: i + 1 for i, to in enumerate(jumps) if to is not None and to < i}
    return sorted(ends.items(), key=lambda loop: loop[1])


def instructions_per_element(case: Case, assembly: Assembly, lanes: int) -> float | None:
    """Instructions of the main loop for each element that it computes; None without a loop, and for
    the kernel that propagates the states of chunks.

    lanes: of a warp.
    """
    # After its end a program may have a loop that waits for the tensor memory: not counted.
    is_end = [re.search(r"\bEXIT\b|s_endpgm", line) is not None for line in assembly.instructions]
    stop = max(i for i, end in enumerate(is_end) if end)
    loops = loops_of(assembly.jumps[:stop])
    if case.kernel is _scan_propagate_kernel or not loops:
        return None
    if "ROWS" in case.constants:
        elements = case.constants["ROWS"] * case.constants["BLOCK_N"] / lanes
        lengths = [end - begin for begin, end in loops if end - begin >= elements]
        # To summarize there is a second loop, for growing segments, which does more.
        length = min(lengths) if case.kernel is _scan_summarize_kernel else lengths[0]
        return length / elements
    elements = case.constants["BLOCK_N"] * case.constants["BLOCK_T"] / lanes
    return _outside_of_products(assembly, loops, elements / case.options["num_warps"])


def _outside_of_products(assembly, loops, elements):
    """Instructions for each of the elements of a tile, in a fused kernel's loop over tiles."""
    lines = assembly.instructions
    # The loop over tiles without the loops inside: over K, waiting for another tile, and over the
    # lanes, which runs where a segment grows.
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    outside = set(range(begin, end))
    for loop in loops:
        # What is nearly as long is the same loop, which AMD's compiler continues from two places.
        if 2 * (loop[1] - loop[0]) < end - begin:
            outside -= set(range(*loop))
    # Nor the block of arithmetic that is jumped over where no u is negative: that of E1.
    counted = set(outside)
    jumps = [(i + 1, to) for i, to in enumerate(assembly.jumps) if to and begin <= i < to < end]
    for jump in jumps:
        block = sorted(outside & set(range(*jump)))
        is_arithmetic = not re.search(NO_ARITHMETIC, "".join(lines[i] for i in block))
        if len(block) >= elements and is_arithmetic:
            counted -= set(block)
    return sum(re.search("MMA|mfma", lines[i]) is None for i in counted) / elements
