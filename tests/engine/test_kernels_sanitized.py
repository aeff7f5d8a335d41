"""The kernels under the sanitizers of the compiler: no step beyond a buffer, nothing undefined, no race; and another
compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src/groundup/engine/kernels"
# Vector code is slow to compile with checks, and none of it is about speed here.
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wno-psabi", "-pthread", "-fno-sanitize-recover=all")
# The newest that there is; it may not have the plain name.
CLANGS = ("clang++", *(f"clang++-{version}" for version in range(25, 13, -1)))
CLANG = next(filter(None, map(shutil.which, CLANGS)), None)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_random_shapes_under_sanitizers(tmp_path: Path, sanitizers: str):
    driver = tmp_path / "driver"
    sources = (HERE / "kernels_driver.cpp", SOURCES / "kernels.cpp")
    subprocess.run(["g++", *FLAGS, f"-fsanitize={sanitizers}", f"-I{SOURCES}", *sources, "-o", driver], check=True)
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.endswith(" rounds\n") and not done.stdout.startswith("0 ")


@pytest.mark.slow
@pytest.mark.skipif(CLANG is None, reason="there is no clang++")
def test_clang_compiles_them_too(tmp_path: Path):
    """All levels, also where it breaks on types that GCC takes; they run here, what they say is tested elsewhere."""
    driver = tmp_path / "driver"
    sources = (HERE / "kernels_driver.cpp", SOURCES / "kernels.cpp")
    subprocess.run([str(CLANG), *FLAGS[:-1], "-O3", f"-I{SOURCES}", *sources, "-o", driver], check=True)
    done = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("0 rounds\n"), (done.stdout + done.stderr)[-3000:]
