#!/usr/bin/env bash
# triton 3.7.1: the interpreter computes with the raw bits of bfloat16, and rounds towards zero where a GPU rounds to nearest.
#
# Expected: TRITON_INTERPRET=1 computes what a kernel computes on a GPU, or refuses a type that it does not have: float16, float32 and
#           int8 are right.
# Seen:     adding two tensors of bfloat16 adds their bits as whole numbers (1 + 1 is 1.7e38), without an error or a
#           warning; a kernel that only stores float32 as bfloat16 cuts the lower bits off, so that about half of all values differ from
#           those of torch and of a GPU.
# So:       tests in the interpreter need a repaired one, or kernels that compute in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check "torch>=2.13,<2.14" triton==3.7.1 numpy==2.3.5
cat > kernels.py <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def add(x, y, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at) + tl.load(y + at))


@triton.jit
def store(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


def added(x, y):
    out = torch.empty_like(x)
    add[(1,)](x, y, out, x.numel())
    return out


x, y = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
wrong = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    left, right = x.to(dtype), y.to(dtype)
    wrong[dtype] = (added(left, right) != left + right).float().mean().item()
    print(f"{dtype}: {wrong[dtype]:.1%} of the sums differ from torch's")
ones = torch.ones(1024, dtype=torch.bfloat16)
print("1 + 1 in bfloat16 is", added(ones, ones)[0].item())
cut = torch.empty(1024, dtype=torch.bfloat16)
store[(1,)](x, cut, 1024)
wrong["stored"] = (cut != x.to(torch.bfloat16)).float().mean().item()
print(f"{wrong['stored']:.1%} of the numbers stored as bfloat16 differ from torch's; triton {triton.__version__}")
seen = wrong[torch.float32] == wrong[torch.float16] == 0 and wrong[torch.bfloat16] > 0.5 and wrong["stored"] > 0.3
sys.exit(0 if seen else "The behaviour has changed.")
PYTHON
TRITON_INTERPRET=1 env/bin/python kernels.py
