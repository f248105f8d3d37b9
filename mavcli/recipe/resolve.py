"""`hardware: auto` -> a backend, an arithmetic and a number of threads for this machine, each with its reason.

The decision is a pure function of a `Machine`, without torch; only `probe_machine` imports it.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mavcli.errors import UsageError, counted
from mavcli.recipe.schema import Recipe

Backend = Literal["cuda", "multi-gpu", "cpu"]
Dtype = Literal["float32", "bfloat16"]

_GIB = 1 << 30
# CPUs that multiply bfloat16 in hardware; elsewhere it is emulated and slower than float32.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


@dataclass(frozen=True)
class CudaDevice:
    """One device that torch sees; `memory` in bytes."""

    name: str
    memory: int
    bf16: bool = True


@dataclass(frozen=True)
class Machine:
    """What decides how a recipe runs. `cores` are those that this process may use, `memory` is in bytes.

    `free` are those bytes that nobody holds now, or that are a copy of a file's; 0 where that is not known.
    """

    cores: int
    memory: int = 0
    free: int = 0
    cpu: str = ""
    cpu_bf16: str = ""  # the instruction set that multiplies bfloat16, or nothing
    cuda: tuple[CudaDevice, ...] = ()
    no_cuda: str = "torch sees no CUDA device"
    omp_threads: int | None = None


@dataclass(frozen=True)
class Resolved:
    """How a recipe runs here. `device` is torch's name of the first device; `reasons` has one entry for each decision.

    `devices` is the number of processes that train together: one for each GPU, any number on the CPU.
    """

    backend: Backend
    device: str
    devices: int
    dtype: Dtype
    threads: int
    reasons: dict[str, str] = field(default_factory=dict)


def resolve(
    recipe: Recipe, *, machine: Machine, training: bool = False, launched: int | None = None
) -> Resolved:
    """Decide every `auto` of `recipe.hardware` for `machine`.

    Several devices are taken by themselves only in `training`: one clip is made on one device. `launched` is the number of
    processes that a launcher has started already (`torchrun`, SLURM), on all machines.
    Raises UsageError where a device is asked for by name and is not there; nothing falls back silently.
    """
    reasons: dict[str, str] = {}
    backend, reasons["backend"] = _backend(recipe.hardware.backend, machine, training)
    dtype, reasons["dtype"] = _dtype(recipe.hardware.dtype, backend, machine)
    devices = 1
    if launched is not None:
        devices, reasons["devices"] = launched, f"{launched} processes were started from outside"
    elif training or backend == "multi-gpu":
        devices = _devices(recipe.hardware.processes, backend, machine)
        if training and devices > 1:
            reasons["devices"] = f"{devices} processes"
    threads, reasons["threads"] = _threads(
        recipe.hardware.threads, machine, sharing=devices if backend == "cpu" else 1
    )
    return Resolved(backend, "cpu" if backend == "cpu" else "cuda:0", devices, dtype, threads, reasons)


def _devices(wanted: int | str, backend: Backend, machine: Machine) -> int:
    """Processes that train together."""
    there = len(machine.cuda)
    if not isinstance(wanted, int):
        return there if backend == "multi-gpu" else 1
    if backend == "cuda" and wanted > 1:
        raise UsageError(
            f"`hardware.processes` is {wanted} with `hardware.backend: cuda`, which is one GPU",
            hint="--set hardware.backend=multi-gpu",
        )
    if backend == "multi-gpu" and wanted > there:
        raise UsageError(
            f"{wanted} GPUs are asked for, there are {there}", hint=f"--gpus {there}, or leave it out"
        )
    return wanted


def _backend(wanted: str, machine: Machine, training: bool) -> tuple[Backend, str]:
    count = len(machine.cuda)
    if wanted == "auto":
        if count == 0:
            return "cpu", machine.no_cuda
        if count > 1 and training:
            return "multi-gpu", f"{count} CUDA devices, the first is {_device(machine.cuda[0])}"
        rest = f", one of {count}: a clip is made on one device" if count > 1 else ""
        return "cuda", f"{_device(machine.cuda[0])}{rest}"
    if wanted == "cpu":
        return "cpu", "asked for"
    if count == 0:
        raise UsageError(
            f"the recipe asks for `hardware.backend: {wanted}`, and {machine.no_cuda}",
            hint="`--set hardware.backend=auto` takes what there is, `mav doctor` says what is wrong with CUDA",
        )
    if wanted == "multi-gpu":
        if count < 2:
            raise UsageError(
                f"the recipe asks for `hardware.backend: multi-gpu`, there is one device, {_device(machine.cuda[0])}",
                hint="--set hardware.backend=cuda",
            )
        return "multi-gpu", f"asked for, {count} devices"
    return "cuda", f"asked for, {_device(machine.cuda[0])}"


def _dtype(wanted: str, backend: Backend, machine: Machine) -> tuple[Dtype, str]:
    if backend == "cpu":
        able, have = bool(machine.cpu_bf16), f"this CPU has {machine.cpu_bf16}"
        lack = "this CPU has no bfloat16 arithmetic"
    else:
        used = machine.cuda if backend == "multi-gpu" else machine.cuda[:1]
        without = [device.name for device in used if not device.bf16]
        able, have = not without, f"{used[0].name} has bfloat16"
        lack = f"{without[0]} has no bfloat16 arithmetic" if without else ""
    if wanted == "bfloat16":
        return "bfloat16", "asked for" if able else f"asked for, though {lack}: slow"
    if wanted == "float32":
        return "float32", "asked for"
    return ("bfloat16", have) if able else ("float32", lack)


def _threads(wanted: int | str, machine: Machine, *, sharing: int = 1) -> tuple[int, str]:
    cores = f"{counted(machine.cores, 'core')} to use"
    if isinstance(wanted, int):
        return wanted, "asked for" if wanted <= machine.cores else f"asked for, though there are {cores}"
    if machine.omp_threads:
        return machine.omp_threads, f"OMP_NUM_THREADS={machine.omp_threads}"
    if sharing > 1:
        return max(1, machine.cores // sharing), f"{cores} for {sharing} processes"
    return machine.cores, cores


def _device(device: CudaDevice) -> str:
    return f"{device.name} with {device.memory / _GIB:.0f} GiB"


def probe_machine() -> Machine:
    """This machine. Imports torch (seconds); asks the devices for nothing but their properties."""
    import torch

    devices: list[CudaDevice] = []
    no_cuda = "torch sees no CUDA device"
    if torch.version.cuda is None and torch.version.hip is None:
        no_cuda = "this torch is built for the CPU alone"
    elif torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            # 8.0 is Ampere; every ROCm device that torch supports has it.
            bf16 = torch.version.hip is not None or properties.major >= 8
            devices.append(CudaDevice(properties.name, properties.total_memory, bf16))
    return Machine(
        cores=_cores(),
        memory=_memory(),
        free=free_memory(),
        cpu=_cpu_field("model name") or platform.processor() or platform.machine(),
        cpu_bf16=_cpu_bf16(),
        cuda=tuple(devices),
        no_cuda=no_cuda,
        omp_threads=_omp_threads(),
    )


def _cpu_field(name: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def _cpu_bf16() -> str:
    flags = (_cpu_field("flags") or _cpu_field("Features")).split()  # Features: Arm's word
    return next((flag for flag in _BF16_FLAGS if flag in flags), "")


def _cores() -> int:
    """Cores that this process may use: its affinity, cut by the container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def _memory() -> int:
    """Bytes that this process may use: the machine's, cut by the container's limit; 0 when unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(memory, int(limit)) if limit != "max" else memory
    except (OSError, ValueError):
        return memory


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could still get, swap and files' copies among them, cut by the container's limit; 0 when unknown."""
    try:
        told = _table(root / "proc/meminfo")
        free = 1024 * (told["MemAvailable"] + told.get("SwapFree", 0))
    except (OSError, ValueError, KeyError, IndexError):
        return 0
    try:
        group = root / "sys/fs/cgroup"
        limit = int((group / "memory.max").read_text())
        held = int((group / "memory.current").read_text())
        stat = _table(group / "memory.stat")
        return max(1, min(free, limit - held + stat["file"] - stat["shmem"]))
    except (OSError, ValueError, KeyError, IndexError):
        return free


def _table(path: Path) -> dict[str, int]:
    """A file of the kernel's with a name and a number a line."""
    rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows}


def _omp_threads() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else None
