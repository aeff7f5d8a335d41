import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.record.cost import Figure, Meter, PeakMemory, RaplCounters, carbon

MIB = 2**20


@pytest.fixture(autouse=True)
def default_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROUNDUP_WATTS_PER_CORE", raising=False)
    monkeypatch.delenv("GROUNDUP_GRID_G_PER_KWH", raising=False)


def keep_busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def fake_powercap(root: Path, **counters: int) -> Path:
    """/sys/class/powercap as Linux lays it out: one folder per energy domain."""
    for index, (name, microjoules) in enumerate(counters.items()):
        folder = root / f"intel-rapl:{index}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name.replace('_', '-')}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("1000000\n")
    return root


def test_every_figure_says_its_unit_whether_it_was_measured_and_by_what(tmp_path: Path) -> None:
    with Meter(tmp_path / "cost.json") as meter:
        keep_busy(0.05)
    written = json.loads((tmp_path / "cost.json").read_text())
    assert {name: (figure["unit"], figure["basis"]) for name, figure in written.items() if name != "energy_joules"} == {
        "wall_seconds": ("s", "measured"),
        "cpu_seconds": ("s", "measured"),
        "peak_memory_bytes": ("B", "measured"),
        "co2_grams": ("g", "estimated"),
    }
    assert all(figure["source"] and figure["value"] > 0 for figure in written.values())
    assert written.keys() == meter.cost().keys()


def test_estimated_energy_is_processor_time_times_the_stated_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.record.cost.RaplCounters", lambda: RaplCounters(Path("/nowhere")))
    with Meter(watts_per_core=3.0, grid_grams_per_kwh=100.0) as meter:
        keep_busy(0.05)
    cost = meter.cost()
    # cost() reads the processor time once more, hence the tolerance
    assert cost["energy_joules"]["value"] == pytest.approx(3.0 * cost["cpu_seconds"]["value"], rel=0.05)
    assert cost["energy_joules"]["basis"] == "estimated" and "3 W per core" in cost["energy_joules"]["source"]
    assert cost["co2_grams"]["value"] == pytest.approx(cost["energy_joules"]["value"] / 3.6e6 * 100.0)


def test_readable_counters_make_energy_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_powercap(tmp_path, package_0=100)
    monkeypatch.setattr("groundup.record.cost.RaplCounters", lambda: RaplCounters(root))
    with Meter() as meter:
        fake_powercap(tmp_path, package_0=500_100)
    energy = meter.cost()["energy_joules"]
    assert (energy["value"], energy["basis"]) == (0.5, "measured") and "RAPL" in energy["source"]
    assert meter.cost()["co2_grams"]["source"].startswith("measured energy × 445 g/kWh")


def test_packages_and_memory_are_counted_once_and_wrapped_counters_go_on(tmp_path: Path) -> None:
    root = fake_powercap(tmp_path, package_0=900_000, core=5, dram=10, package_1=0)
    counters = RaplCounters(root)
    fake_powercap(tmp_path, package_0=100_000, core=999_999, dram=30_010, package_1=70_000)  # package 0 wrapped around
    counters.sample()
    assert counters.joules == pytest.approx(0.2 + 0.03 + 0.07)
    assert RaplCounters(tmp_path / "absent").joules is None


def test_the_environment_sets_watts_and_grid_and_an_argument_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDUP_WATTS_PER_CORE", "20")
    monkeypatch.setenv("GROUNDUP_GRID_G_PER_KWH", "50")
    with Meter(grid_grams_per_kwh=60) as meter:
        pass
    assert "× 60 g/kWh" in meter.cost()["co2_grams"]["source"]
    monkeypatch.setenv("GROUNDUP_WATTS_PER_CORE", "plenty")
    with pytest.raises(UserError, match="GROUNDUP_WATTS_PER_CORE must be a positive number, not 'plenty'"):
        Meter()


def test_a_resumed_stage_counts_the_killed_attempt_too(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    with Meter(path):
        keep_busy(0.1)
    first = json.loads(path.read_text())
    with Meter(path):
        keep_busy(0.1)
    both = json.loads(path.read_text())
    assert both["cpu_seconds"]["value"] >= first["cpu_seconds"]["value"] + 0.1
    assert both["wall_seconds"]["value"] >= first["wall_seconds"]["value"] + 0.1


def test_a_killed_stage_has_written_its_cost_up_to_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundup.record.cost._SAMPLING_SECONDS", 0.01)
    monkeypatch.setattr("groundup.record.cost._WRITING_SECONDS", 0.02)
    path = tmp_path / "cost.json"
    with Meter(path):
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["wall_seconds"]["value"] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only: high-water mark that can be reset")
def test_peak_memory_is_that_of_this_stage_not_of_an_earlier_one() -> None:
    with Meter() as first:
        block = b"\x01" * (200 * MIB)
        del block
    with Meter() as second:
        pass
    small = second.cost()["peak_memory_bytes"]["value"]
    assert first.cost()["peak_memory_bytes"]["value"] - small > 190 * MIB


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux only: memory of children")
def test_memory_of_children_and_grandchildren_is_counted_while_they_live() -> None:
    hold = f"block = b'\\x01' * (64 * {MIB}); print('ready', flush=True); input()"
    nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    memory = PeakMemory()
    memory.sample()
    alone = memory.peak_bytes
    child = subprocess.Popen([sys.executable, "-c", nest], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    memory.sample()
    child.communicate("\n")
    assert memory.peak_bytes - alone > 60 * MIB
    assert "children" in memory.source


def test_carbon_of_one_kilowatt_hour_is_the_grid_intensity() -> None:
    assert carbon(Figure(3.6e6, "J", "measured", "RAPL"), 445.0).value == pytest.approx(445.0)
