"""The model on a GPU: kernels in Triton. Import nothing of this folder where Triton is not installed."""
