"""Serving in a forked child, as by ``gunicorn --preload``.

A fork copies one thread. OpenMP's teams of the parent (PyTorch's, FAISS') are then waited for by the child for ever, so
a child works with one thread; more processes, not more threads, serve more.
"""

from __future__ import annotations

import os

import faiss
import torch

_pid = os.getpid()


def settle() -> None:
    """In a process that was forked since this module was read, let PyTorch and FAISS use one thread from now on."""
    global _pid
    if os.getpid() != _pid:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        _pid = os.getpid()
