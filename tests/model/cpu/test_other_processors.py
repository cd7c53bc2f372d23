"""Products of blocks on processors that this machine does not have, in an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

from caravan.model.cpu import build

KERNELS = Path(build.__file__).parent
PROGRAM = Path(__file__).with_name("block_products.cpp")
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"

# The headers need nothing else of PyTorch.
STUBS = {
    "ATen/Parallel.h": """#pragma once
#include <cstdint>
namespace at {
inline int64_t get_num_threads() { return 1; }
inline bool in_parallel_region() { return false; }
template <class F>
void parallel_for(int64_t, int64_t, int64_t, const F& f) { f(0, 1); }
}
""",
    "c10/util/string_view.h": """#pragma once
#include <string_view>
namespace c10 { using std::string_view; }
""",
}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER}, {EMULATOR}")
@pytest.mark.parametrize("target", ["armv8.2-a+dotprod", "armv8-a"])
def test_products_on_arm_are_exact_and_the_same_for_any_number_of_rows(tmp_path: Path, target: str) -> None:
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    program = tmp_path / "block_products"
    folders = [f"-I{tmp_path}", f"-I{KERNELS}"]
    flags = ["-O3", "-std=c++20", "-static", "-Wno-psabi", f"-march={target}"]
    subprocess.run([COMPILER, *flags, *folders, str(PROGRAM), "-o", str(program)], check=True)
    done = subprocess.run([EMULATOR, "-cpu", "max", str(program)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0
