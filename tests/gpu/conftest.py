"""Tests of the kernels run on a GPU, or on the CPU where Triton's interpreter was asked for before Python started; with
``VISTA_CARD=pretended`` too, they then run the branches for a GPU (``card.py``)."""

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["test_decode.py", "test_device.py", "test_kernels.py", "test_card.py"]
elif os.environ.get("VISTA_CARD") != "pretended":
    collect_ignore = ["test_card.py"]

if os.environ.get("VISTA_CARD") == "pretended":
    from tests.gpu import card

    _card = card.pretended()
    _card.__enter__()
