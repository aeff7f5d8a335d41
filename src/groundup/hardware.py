"""What this machine has and how fast it is: cores, memory, instruction sets, GPU, measured peak and bandwidth.

What counts is what this *process* may use: a container with two of sixty-four cores has two. `describe` and `doctor`
read Linux's own files; on other systems they say what Python itself knows. torch is imported only by what needs it.
"""

import functools
import os
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

# Instruction sets that decide how fast a model trains or answers, by the names that Linux gives them.
_RELEVANT_FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve"),
)
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

_MEASURING_SECONDS = 5.0
_BANDWIDTH_BYTES = 256 * 2**20  # several times the largest cache of a laptop


@dataclass(frozen=True)
class Hardware:
    """What one process may use of this machine."""

    processor: str
    cores: int
    memory_bytes: int
    instruction_sets: tuple[str, ...]
    torch_threads: int
    gpu: str | None
    gpu_memory_bytes: int | None
    compiler: str | None  # path of the C++ compiler that torch.compile calls
    python_headers: bool  # Python.h, which the code written by torch.compile includes
    disk_free_bytes: int

    @property
    def computes_bfloat16(self) -> bool:
        """Whether matrix products in bfloat16 run on instructions made for them."""
        return self.gpu is not None or not _BFLOAT16_FLAGS.isdisjoint(self.instruction_sets)


def describe(folder: Path = Path()) -> Hardware:
    """Describe this machine; `folder` says which disk is meant. Imports torch."""
    import torch

    has_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if has_gpu else None
    return Hardware(
        processor=processor_name(),
        cores=usable_cores(),
        memory_bytes=usable_memory_bytes(),
        instruction_sets=instruction_sets(),
        torch_threads=torch.get_num_threads(),
        gpu=properties.name if properties else None,
        gpu_memory_bytes=properties.total_memory if properties else None,
        compiler=shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"),
        python_headers=(Path(sysconfig.get_path("include")) / "Python.h").exists(),
        disk_free_bytes=shutil.disk_usage(folder).free,
    )


def processor_name(root: Path = Path("/")) -> str:
    """The processor as its maker calls it, or its architecture where nobody says."""
    return _cpuinfo(root).get("model name") or platform.processor() or platform.machine()


def instruction_sets(root: Path = Path("/")) -> tuple[str, ...]:
    """Those of the processor's instruction sets that matter here, by their Linux names; empty where unknown."""
    cpuinfo = _cpuinfo(root)
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    return tuple(flag for flag in _RELEVANT_FLAGS if flag in flags)


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy at once, at least 1: its affinity, cut by its control groups' quotas."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota_v2(text) for text in _cgroup_texts(root, "", "cpu.max")]
    periods = _cgroup_texts(root, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(_cgroup_texts(root, "cpu", "cpu.cfs_quota_us"), periods, strict=True):
        quotas.append(int(quota) / int(period) if int(quota) > 0 else None)
    return max(1, min([cores, *(int(quota) for quota in quotas if quota is not None)]))


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process may use: the machine's, or the limit of its control groups where that is lower."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for text in [*_cgroup_texts(root, "", "memory.max"), *_cgroup_texts(root, "memory", "memory.limit_in_bytes")]:
        if text != "max":
            limits.append(int(text))
    return min(limits)


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; {} on systems without one."""
    path = root / "proc/cpuinfo"
    if not path.exists():
        return {}
    entry = path.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in entry.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _quota_v2(text: str) -> float | None:
    """`cpu.max` holds `QUOTA PERIOD` in microseconds, or `max PERIOD` where nothing is limited."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _cgroup_texts(root: Path, controller: str, name: str) -> list[str]:
    """The contents of file `name` in this process's control group and all above it, as far as they are visible.

    controller: `cpu` or `memory` for version 1 of control groups, "" for version 2.
    A container often sees its own group at the mount's root and not at the path that /proc names: both are looked at.
    """
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return []
    texts = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup" / controller, path):
                if (folder / name).is_file():
                    texts.append((folder / name).read_text().strip())
    return texts


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    folder = mount / path.strip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def peak_flops(dtype: "torch.dtype | str", device: str = "cpu", size: int = 4096, tries: int = 5) -> float:
    """Floating-point operations per second of the largest thing a model does: a size × size matrix product.

    The best of `tries`, since other processes can only slow a measurement down; it stops early on a slow machine.
    This is the peak that utilisation is measured against; measured once per process, kind and thread count.
    dtype: `bfloat16` or `float32`, with or without `torch.` before it.
    """
    import torch

    return _measure_peak(str(dtype).removeprefix("torch."), device, size, tries, torch.get_num_threads())


@functools.cache
def _measure_peak(dtype_name: str, device: str, size: int, tries: int, threads: int) -> float:
    import torch

    dtype = getattr(torch, dtype_name)
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty(size, size, dtype=dtype, device=device)
    with torch.no_grad():
        seconds = _best_seconds(lambda: torch.mm(left, right, out=product), device, tries)
    return 2 * size**3 / seconds


def memory_bandwidth(device: str = "cpu", size_bytes: int = _BANDWIDTH_BYTES, tries: int = 5) -> float:
    """Bytes per second at which memory is read: what limits generation, which reads every weight for every token."""
    import torch

    numbers = torch.ones(size_bytes // 4, dtype=torch.float32, device=device)
    return numbers.nbytes / _best_seconds(lambda: numbers.sum(), device, tries)


def peak_memory_bytes(device: "torch.device | None" = None) -> int | None:
    """Most memory that this process has held at a time, of a GPU where `device` is one; None where nobody says."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _best_seconds(work: "Callable[[], object]", device: str, tries: int) -> float:
    import torch

    def once() -> float:
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    warm_up = once()  # allocates, and wakes the threads
    best, spent = warm_up, warm_up
    for _ in range(tries):
        if spent > _MEASURING_SECONDS:
            break
        seconds = once()
        best, spent = min(best, seconds), spent + seconds
    return best


@dataclass(frozen=True)
class Finding:
    """One sentence about this machine: `good` to know, or what is `slow` or `missing` together with what to do."""

    verdict: Literal["good", "slow", "missing"]
    subject: str
    sentence: str


def doctor(folder: Path = Path(), size: int = 2048) -> list[Finding]:
    """What this machine has and what will be slow on it, measured in a few seconds.

    folder: where runs will be written. size: edge of the matrices measured with.
    """
    load = os.getloadavg()[0]  # before our own measurements raise it
    machine = describe(folder)
    device = "cuda" if machine.gpu else "cpu"
    rates = {dtype: peak_flops(dtype, device, size) for dtype in ("bfloat16", "float32")}
    return [
        *judge_machine(machine, load),
        judge_precision(machine, rates["bfloat16"], rates["float32"]),
        Finding(
            "good", "memory bandwidth", f"{memory_bandwidth(device) / 1e9:.0f} GB/s read; it bounds the speed of chat."
        ),
    ]


def judge_machine(machine: Hardware, load: float) -> list[Finding]:
    """Findings that need no measurement. load: processes running on average over the last minute."""
    return [
        _judge_cores(machine, load),
        _judge_memory(machine.memory_bytes),
        _judge_disk(machine.disk_free_bytes),
        _judge_compiler(machine),
        _judge_gpu(machine),
    ]


def judge_precision(machine: Hardware, bfloat16_flops: float, float32_flops: float) -> Finding:
    """Whether the number format that training takes by itself is the faster one, from the measured rates of both."""
    by_itself = "bfloat16" if machine.computes_bfloat16 else "float32"
    faster = "bfloat16" if bfloat16_flops >= float32_flops else "float32"
    rates = f"{bfloat16_flops / 1e9:,.0f} GFLOP/s in bfloat16, {float32_flops / 1e9:,.0f} in float32"
    measured = f"matrix products reach {rates}"
    if by_itself == faster:
        return Finding("good", "precision", f"{measured}; training computes in {faster}.")
    advice = f"but training would compute in {by_itself}: set `pretrain.precision` to {faster}"
    return Finding("slow", "precision", f"{measured}, {advice}.")


def _judge_cores(machine: Hardware, load: float) -> Finding:
    sets = f" ({', '.join(machine.instruction_sets)})" if machine.instruction_sets else ""
    found = f"{machine.processor}, {_count(machine.cores, 'usable core')}{sets}"
    # Half is right where two of the system's cores are one core of the chip: torch counts the chip's.
    if 2 * machine.torch_threads < machine.cores:
        return Finding(
            "slow",
            "processor",
            f"{found}, but torch uses {_count(machine.torch_threads, 'thread')}: set OMP_NUM_THREADS={machine.cores}.",
        )
    if machine.torch_threads > machine.cores:
        return Finding(
            "slow",
            "processor",
            f"{found}, but torch starts {machine.torch_threads} threads, which wait for each other: "
            f"set OMP_NUM_THREADS={machine.cores}.",
        )
    if load > 0.5 * machine.cores:
        return Finding(
            "slow",
            "processor",
            f"{found}, but other programs keep {load:.1f} of them busy: stop them before you train.",
        )
    return Finding("good", "processor", f"{found}.")


def _judge_memory(memory_bytes: int) -> Finding:
    found = f"{memory_bytes / 1e9:.1f} GB usable"
    if memory_bytes < 4e9:
        return Finding(
            "slow", "memory", f"{found}: lower `pretrain.micro_batch_tokens` if a run is killed for want of memory."
        )
    return Finding("good", "memory", f"{found}.")


def _judge_disk(free_bytes: int) -> Finding:
    found = f"{free_bytes / 1e9:.1f} GB free where runs are written"
    if free_bytes < 2e9:
        return Finding("missing", "disk", f"{found}: make room, a run of the pocket recipe needs up to 2 GB.")
    return Finding("good", "disk", f"{found}.")


def _judge_compiler(machine: Hardware) -> Finding:
    if machine.compiler is None:
        return Finding(
            "missing",
            "compiler",
            "no C++ compiler, so training runs without torch.compile: `apt install g++` or likewise.",
        )
    if not machine.python_headers:
        return Finding(
            "missing",
            "compiler",
            f"{machine.compiler} is there but Python.h is not, so training runs without torch.compile: "
            "`apt install python3-dev` or likewise.",
        )
    return Finding("good", "compiler", f"{machine.compiler}; torch.compile can be used.")


def _judge_gpu(machine: Hardware) -> Finding:
    if machine.gpu is not None and machine.gpu_memory_bytes is not None:
        return Finding("good", "GPU", f"{machine.gpu}, {machine.gpu_memory_bytes / 1e9:.0f} GB.")
    if Path("/proc/driver/nvidia/gpus").exists():
        return Finding(
            "slow",
            "GPU",
            "there is an NVIDIA GPU that this build of torch cannot use: install a CUDA build from pytorch.org.",
        )
    return Finding("good", "GPU", "none; the shipped recipes are made for the processor alone.")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
