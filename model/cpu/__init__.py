"""The model computed by C++ kernels on a CPU: the same layers as model/llama.py, in fewer and faster calls."""
