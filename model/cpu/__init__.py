"""The CPU backend: the layers of model/llama.py in C++ kernels."""
