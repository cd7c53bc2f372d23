"""The tests of this folder run with every build of the kernels."""

from tests.model.cpu.builds import kernels as kernels
