"""Shared memory: how much of it a program of a kernel can have."""

import torch

MOST = 2**18  # more than any GPU has: kernels that are compiled or interpreted without a GPU have no limit


def shared_memory_bytes(device: torch.device) -> int:
    """Return the bytes of shared memory that a program can have.

    A100 163 KiB, H100, H200 and B200 227 KiB; 99 KiB where the compute capability is 8.6, 8.9 or 12: A10, L4, L40S, RTX
    3090, 4090 and 5090. Source: CUDA C++ Programming Guide, technical specifications per compute capability.
    """
    if device.type != "cuda":
        return MOST
    properties = torch.cuda.get_device_properties(device)
    # PyTorch has what a program can ask for on NVIDIA's GPUs, where a kernel gets less without asking.
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))
