"""One torch thread per test process; hypothesis without wall-clock limits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile(
    "vista", deadline=None, max_examples=25, suppress_health_check=list(HealthCheck), derandomize=True
)
settings.load_profile("vista")


@pytest.fixture(params=["native", "numpy"])
def kernel(request, monkeypatch):
    """The test once with the compiled part of the store, once as on a machine where it could not be built."""
    from cache_store.native import library as native

    if request.param == "numpy":
        monkeypatch.setattr(native, "library", None)
    elif native.library is None:
        pytest.skip("the compiled part was not built here: no C compiler at `make setup`?")
    return request.param
