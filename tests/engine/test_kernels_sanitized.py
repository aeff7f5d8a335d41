"""The kernels under the sanitizers of the compiler: no step beyond a buffer, nothing undefined, no race."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src/groundup/engine/kernels"
# Vector code is slow to compile with checks, and none of it is about speed here.
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wno-psabi", "-pthread", "-fno-sanitize-recover=all")


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
