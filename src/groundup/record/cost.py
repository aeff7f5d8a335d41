"""What a stage costs: time, processor time, memory, energy and CO₂, each figure labelled measured or estimated.

    with Meter(out / "cost.json"):
        ...

`cost.json` holds one figure per name: {"value", "unit", "basis": "measured" | "estimated", "source"}. It is written
every few seconds, so that after a kill the next attempt goes on counting where the last one stopped.

Energy is that of the processor; a GPU's is not in it. It is measured where the kernel lets us read its counters
(RAPL); elsewhere it is estimated as processor time × GROUNDUP_WATTS_PER_CORE. CO₂ is energy × GROUNDUP_GRID_G_PER_KWH,
always an estimate.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from groundup.errors import UserError
from groundup.storage import write_json

# One busy core with its share of memory, board and power supply. The processor alone takes about 4 W per core in a
# server (AMD EPYC 9654: 360 W for 96 cores) and 7 W in a laptop (Intel Core i7-1165G7: 28 W for 4 cores).
DEFAULT_WATTS_PER_CORE = 8.0
# World average of 2024: International Energy Agency, "Electricity 2025", chapter "Emissions".
DEFAULT_GRID_GRAMS_PER_KWH = 445.0

WATTS_VARIABLE = "GROUNDUP_WATTS_PER_CORE"
GRID_VARIABLE = "GROUNDUP_GRID_G_PER_KWH"

JOULES_PER_KWH = 3.6e6

_SAMPLING_SECONDS = 0.5
_WRITING_SECONDS = 5.0


@dataclass(frozen=True)
class Figure:
    """One number with its unit, and whether it was measured or estimated, and by what."""

    value: float
    unit: str
    basis: Literal["measured", "estimated"]
    source: str


class Meter:
    """Measures what runs between `__enter__` and `__exit__`, this process and its children together.

    path: where to keep `cost.json`; what an earlier, killed attempt left there is added (of memory, the larger stands).
    watts_per_core, grid_grams_per_kwh: override the environment, which overrides the defaults.
    Raises UserError for an environment variable that is no positive number.
    """

    def __init__(
        self, path: Path | None = None, watts_per_core: float | None = None, grid_grams_per_kwh: float | None = None
    ) -> None:
        self._path = path
        self._watts_per_core = watts_per_core or _environment(WATTS_VARIABLE, DEFAULT_WATTS_PER_CORE)
        self._grid_grams_per_kwh = grid_grams_per_kwh or _environment(GRID_VARIABLE, DEFAULT_GRID_GRAMS_PER_KWH)
        self._earlier = _read_values(path)
        self._stop = threading.Event()

    def __enter__(self) -> "Meter":
        self._rapl = RaplCounters()
        self._memory = PeakMemory()
        self._wall_started = time.monotonic()
        self._cpu_started = _cpu_seconds()
        self._sampler = threading.Thread(target=self._sample_until_stopped, name="cost", daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        self._sample()
        self._write()

    def cost(self) -> dict[str, dict[str, Any]]:
        """The figures so far, as `cost.json` holds them.

        wall_seconds, cpu_seconds, peak_memory_bytes, energy_joules, co2_grams.
        """
        wall = time.monotonic() - self._wall_started + self._earlier.get("wall_seconds", 0.0)
        cpu = _cpu_seconds() - self._cpu_started + self._earlier.get("cpu_seconds", 0.0)
        memory = max(self._memory.peak_bytes, self._earlier.get("peak_memory_bytes", 0.0))
        energy = self._energy(cpu)
        figures = {
            "wall_seconds": Figure(wall, "s", "measured", "clock"),
            "cpu_seconds": Figure(cpu, "s", "measured", "getrusage, this process and its ended children"),
            "peak_memory_bytes": Figure(memory, "B", "measured", self._memory.source),
            "energy_joules": energy,
            "co2_grams": carbon(energy, self._grid_grams_per_kwh),
        }
        return {name: asdict(figure) for name, figure in figures.items()}

    def _energy(self, cpu_seconds: float) -> Figure:
        if self._rapl.joules is None:
            return estimated_energy(cpu_seconds, self._watts_per_core)
        joules = self._rapl.joules + self._earlier.get("energy_joules", 0.0)
        return Figure(joules, "J", "measured", "RAPL, the whole processor with all that ran on it")

    def _sample_until_stopped(self) -> None:
        written = time.monotonic()
        while not self._stop.wait(_SAMPLING_SECONDS):
            self._sample()
            if time.monotonic() - written >= _WRITING_SECONDS:
                try:
                    self._write()
                except OSError:
                    return  # the disk is full: the last write, in `__exit__`, raises it where it is heard
                written = time.monotonic()

    def _sample(self) -> None:
        self._rapl.sample()
        self._memory.sample()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, self.cost())


def estimated_energy(cpu_seconds: float, watts_per_core: float) -> Figure:
    """Processor time × watts per core."""
    source = f"processor time × {watts_per_core:g} W per core ({WATTS_VARIABLE})"
    return Figure(cpu_seconds * watts_per_core, "J", "estimated", source)


def carbon(energy: Figure, grid_grams_per_kwh: float) -> Figure:
    """Grams of CO₂ for the energy: an estimate, since nobody measures where the power came from."""
    source = f"{energy.basis} energy × {grid_grams_per_kwh:g} g/kWh ({GRID_VARIABLE})"
    return Figure(energy.value / JOULES_PER_KWH * grid_grams_per_kwh, "g", "estimated", source)


class RaplCounters:
    """Energy counters of the processor packages and their memory, where /sys/class/powercap may be read.

    joules: energy since construction up to the last `sample`, or None where there is no readable counter.
    Sample more often than a counter wraps around, which takes the better part of an hour.
    Source: Linux, Documentation/power/powercap/powercap.rst.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._domains = [folder for folder in sorted(root.glob("intel-rapl:*")) if _is_counted(folder)]
        self._last = [_read_microjoules(folder) for folder in self._domains]
        self._microjoules = 0

    @property
    def joules(self) -> float | None:
        return self._microjoules / 1e6 if self._domains else None

    def sample(self) -> None:
        """Add what was used since the last one, by one turn of the counter at most."""
        for index, folder in enumerate(self._domains):
            now = _read_microjoules(folder)
            passed = now - self._last[index]
            if passed < 0:
                passed += int((folder / "max_energy_range_uj").read_text())
            self._microjoules += passed
            self._last[index] = now


def _is_counted(folder: Path) -> bool:
    """Packages and their DRAM; cores and graphics are part of the package and would count twice."""
    if not os.access(folder / "energy_uj", os.R_OK):
        return False
    return (folder / "name").read_text().strip().startswith(("package", "dram"))


def _read_microjoules(folder: Path) -> int:
    return int((folder / "energy_uj").read_text())


class PeakMemory:
    """The most memory that this process and its children held at one time since construction, in bytes.

    Linux keeps an exact high-water mark per process, and lets a process set its own back. Of children the mark says
    nothing about who held how much at the same time, so what each holds for itself alone is sampled and added to what
    this process holds: a page that a worker shares with its parent counts once.
    """

    def __init__(self) -> None:
        self._exact = _reset_high_water_mark()
        self._had_children = False
        self.peak_bytes = 0.0

    @property
    def source(self) -> str:
        mark = "high-water mark of this process" + ("" if self._exact else " since its start")
        return f"{mark} and its children, sampled every {_SAMPLING_SECONDS:g} s" if self._had_children else mark

    def sample(self) -> None:
        """Look at what is held now."""
        children = list(_descendants(os.getpid()))
        self._had_children = self._had_children or bool(children)
        together = _status_bytes("VmRSS") + sum(_private_bytes(pid) for pid in children) if children else 0
        own = _status_bytes("VmHWM") if self._exact else _max_resident_bytes()
        self.peak_bytes = max(self.peak_bytes, own, together)


def _reset_high_water_mark() -> bool:
    """Set this process's high-water mark back to what it holds now; False where the system cannot.

    Source: proc(5), /proc/pid/clear_refs, value 5 (Linux 4.0).
    """
    path = Path("/proc/self/clear_refs")
    if not os.access(path, os.W_OK):
        return False
    path.write_text("5")
    return True


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _max_resident_bytes() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _descendants(pid: int) -> Iterator[int]:
    """Children, their children, and so on; none where the kernel does not list them. A process may end meanwhile."""
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in listing.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield child
            yield from _descendants(child)


def _private_bytes(pid: int) -> int:
    """Memory that this process shares with no other (unique set size)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it ended between listing and reading
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def _cpu_seconds() -> float:
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _read_values(path: Path | None) -> dict[str, float]:
    if path is None or not path.exists():
        return {}
    return {name: figure["value"] for name, figure in json.loads(path.read_text()).items()}


def _environment(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"environment variable {name} must be a positive number, not {text!r}")
    return value
