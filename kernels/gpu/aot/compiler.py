"""Compiles the cases of `cases` as a launch would, each in a process that may crash."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

import triton
from triton.compiler import ASTSource, make_backend

from .assembly import instructions_per_element, read_assembly
from .cases import TARGETS, Case, cases


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
    # D: divisible by 16. S: a tensor is smaller than 2 GiB.
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
    assembly = read_assembly(compiled)
    lines = assembly.instructions
    return Report(
        target,
        case.dtype,
        case.name,
        registers=assembly.registers,
        spilled=assembly.spilled,
        shared=compiled.metadata.shared,
        barriers=sum("BAR.SYNC" in line or "s_barrier" in line for line in lines),
        instructions=len(lines),
        per_element=instructions_per_element(case, assembly, TARGETS[target].warp_size),
    )


def jobs_of(targets: list[str]) -> list[tuple[str, int]]:
    """For `compile_all`: every case for each of these targets."""
    return [(target, position) for target in targets for position in range(len(cases(target)))]


def compile_all(jobs: list[tuple[str, int]], processes: int = 2) -> list[Report | Failure]:
    """Compiles in this many processes. Each job: a target, and a position in `cases(target)`."""
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
        futures = [pool.submit(compile_one, *job) for job in jobs]
        reports = [future.result() for future in futures]
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
