import dataclasses
import os
from pathlib import Path

import pytest

from groundup.hardware import (
    Hardware,
    describe,
    doctor,
    instruction_sets,
    judge_machine,
    judge_precision,
    memory_bandwidth,
    peak_flops,
    processor_name,
    usable_cores,
    usable_memory_bytes,
)

LAPTOP = Hardware(
    processor="Test CPU",
    cores=4,
    memory_bytes=16 * 10**9,
    instruction_sets=("avx2", "avx512_bf16"),
    torch_threads=4,
    gpu=None,
    gpu_memory_bytes=None,
    compiler="/usr/bin/g++",
    python_headers=True,
    disk_free_bytes=100 * 10**9,
)


def make_root(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def with_cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)


def test_this_machine_is_described_as_the_system_sees_it() -> None:
    machine = describe()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.processor and machine.disk_free_bytes > 0
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        assert all(f" {flag}" in cpuinfo.read_text() for flag in machine.instruction_sets)


def test_cores_outside_the_affinity_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cores(monkeypatch, 3)
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/app/job/cpu.max": "max 100000", "sys/fs/cgroup/app/cpu.max": "350000 100000"}, 3),
    ],
)
def test_the_quota_of_any_control_group_above_cuts_the_cores(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cores(monkeypatch, 8)
    assert usable_cores(make_root(tmp_path, {"proc/self/cgroup": "0::/app/job\n", **files})) == cores


def test_control_groups_of_version_1_cut_cores_and_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cores(monkeypatch, 8)
    root = make_root(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert usable_cores(root) == 4
    assert usable_memory_bytes(root) == 1_000_000


def test_a_memory_limit_counts_and_max_is_none(tmp_path: Path) -> None:
    root = make_root(tmp_path, {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "512000000\n"})
    assert usable_memory_bytes(root) == 512_000_000
    (root / "sys/fs/cgroup/job/memory.max").write_text("max\n")
    assert usable_memory_bytes(root) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("cpuinfo", "name", "sets"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: sse avx2 avx512_bf16\n\nprocessor\t: 1\n",
            "Some CPU @ 2 GHz",
            ("avx2", "avx512_bf16"),
        ),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16 sve2\n", None, ("asimd", "bf16", "i8mm")),
    ],
)
def test_processor_and_instruction_sets_are_read_on_x86_and_arm(
    cpuinfo: str, name: str | None, sets: tuple[str, ...], tmp_path: Path
) -> None:
    root = make_root(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert instruction_sets(root) == sets
    assert processor_name(root) == name if name else processor_name(root)


def test_peak_and_bandwidth_are_possible_figures_and_measured_once() -> None:
    first = peak_flops("float32", size=256, tries=2)
    assert 1e8 < first < 1e16
    assert peak_flops("torch.float32", size=256, tries=2) == first, "a second measurement would differ"
    assert 1e8 < memory_bandwidth(size_bytes=2**22, tries=2) < 1e13


def test_a_good_machine_has_only_good_findings() -> None:
    assert {finding.verdict for finding in judge_machine(LAPTOP, load=0.1)} == {"good"}


@pytest.mark.parametrize(
    ("change", "load", "subject", "verdict", "advice"),
    [
        ({"torch_threads": 1}, 0.0, "processor", "slow", "OMP_NUM_THREADS=4"),
        ({"torch_threads": 64}, 0.0, "processor", "slow", "OMP_NUM_THREADS=4"),
        ({}, 3.7, "processor", "slow", "3.7 of them busy"),
        ({"memory_bytes": 2 * 10**9}, 0.0, "memory", "slow", "2.0 GB usable"),
        ({"disk_free_bytes": 10**8}, 0.0, "disk", "missing", "make room"),
        ({"compiler": None}, 0.0, "compiler", "missing", "apt install g++"),
        ({"python_headers": False}, 0.0, "compiler", "missing", "python3-dev"),
    ],
)
def test_what_will_be_slow_is_said_in_one_sentence_with_what_to_do(
    change: dict[str, object], load: float, subject: str, verdict: str, advice: str
) -> None:
    findings = judge_machine(dataclasses.replace(LAPTOP, **change), load)  # type: ignore[arg-type]
    troubles = [finding for finding in findings if finding.verdict != "good"]
    assert [(finding.subject, finding.verdict) for finding in troubles] == [(subject, verdict)]
    assert advice in troubles[0].sentence and troubles[0].sentence.endswith(".") and "\n" not in troubles[0].sentence


def test_two_threads_on_four_half_cores_are_no_trouble() -> None:
    assert judge_machine(dataclasses.replace(LAPTOP, torch_threads=2), load=0.0)[0].verdict == "good"


@pytest.mark.parametrize(
    ("sets", "bfloat16_flops", "float32_flops", "verdict", "said"),
    [
        (("avx2", "avx512_bf16"), 8e11, 1e11, "good", "computes in bfloat16"),
        (("avx2",), 2e10, 1e11, "good", "computes in float32"),
        (("avx2", "avx512_bf16"), 2e10, 1e11, "slow", "`pretrain.precision` to float32"),
        (("avx2",), 2e11, 1e11, "slow", "`pretrain.precision` to bfloat16"),
    ],
)
def test_the_slower_number_format_is_advised_against(
    sets: tuple[str, ...], bfloat16_flops: float, float32_flops: float, verdict: str, said: str
) -> None:
    finding = judge_precision(dataclasses.replace(LAPTOP, instruction_sets=sets), bfloat16_flops, float32_flops)
    assert finding.verdict == verdict and said in finding.sentence


def test_the_doctor_looks_at_everything(tmp_path: Path) -> None:
    findings = doctor(tmp_path, size=128)
    assert [finding.subject for finding in findings] == [
        *("processor", "memory", "disk", "compiler", "GPU"),
        *("precision", "memory bandwidth"),
    ]
