"""Tests of the kernels run on a GPU, or on the CPU where Triton's interpreter was asked for before Python started."""

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["test_decode.py", "test_device.py", "test_kernels.py"]
