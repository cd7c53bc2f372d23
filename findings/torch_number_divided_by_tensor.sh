#!/usr/bin/env bash
# torch 2.13.0: a number divided by a tensor is not divided, but multiplied by rounded reciprocals.
#
# Expected: `127 / x` is the correctly rounded quotient of each element, as IEEE 754 asks of a division, as NumPy computes it, and as
#           `torch.div(torch.tensor(127.0), x)` and `torch.full_like(x, 127) / x` do.
# Seen:     it is `x.reciprocal() * 127`, which rounds twice: a quarter of all float32 values differ in the last digit, without a word
#           in the documentation of the operator. `x / 127` is a real division.
# So:       a kernel that is to quantize as a formula in PyTorch does (scale = 127 / largest) must multiply by the reciprocal, too;
#           or the formula must be written with two tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check "torch>=2.13,<2.14" numpy==2.3.5
env/bin/python - <<'PYTHON'
import sys

import numpy as np
import torch

x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 0.5
written = 127 / x
quotients = {
    "two tensors": torch.tensor(127.0) / x,
    "numpy": torch.from_numpy(np.float32(127) / x.numpy()),
}
twice = x.reciprocal() * 127
print("torch", torch.__version__)
for name, exact in quotients.items():
    print(f"127 / x differs from the division of {name} in {(written != exact).float().mean():.1%} of the elements")
print(f"127 / x differs from x.reciprocal() * 127 in {(written != twice).float().mean():.1%}")
print(f"x / 127 differs from numpy's in {(x / 127 != torch.from_numpy(x.numpy() / np.float32(127))).float().mean():.1%}")
seen = all((written != exact).float().mean() > 0.2 for exact in quotients.values()) and torch.equal(written, twice)
sys.exit(0 if seen else "The behaviour has changed.")
PYTHON
