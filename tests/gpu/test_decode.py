"""The decoding kernel against NumPy's decoding, bit for bit, and the feature that uses it."""

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from known_stores import PAGED, KnownStore

from cache_store import Group, RecordSchema
from cache_store.format.quantize import CODECS
from cache_store.format.record import PAGE_HEADER, as_rows
from cache_store.torch.decode import RecordDecoder, _kernel
from cache_store.torch.feature import SummaryFeature

pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRESH = settings(
    max_examples=int(os.environ.get("VISTA_EXAMPLES", "3")), deadline=None, derandomize=False, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
)  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@FRESH
@given(
    tokens=st.integers(1, 9), width=st.sampled_from([1, 7, 32, 200]), other=st.sampled_from(CODECS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_one_kernel_decodes_as_numpy_does_and_spreads_as_asked(codec, tokens, width, other, dtype, seed):
    if "int64" in (codec, other):
        dtype = torch.float32  # whole numbers are bits, nothing that could be cast
    rng = np.random.default_rng(seed)
    schema = RecordSchema((Group("a", tokens, width, codec), Group("b", tokens + 2, width, other)))
    n = 4
    drawn = {g.name: rng.standard_normal((n, g.tokens, width)).astype(np.float32) for g in schema.groups}
    values = {g.name: np.abs(drawn[g.name]) if g.codec == "log8" else drawn[g.name] for g in schema.groups}
    zeros = np.zeros(n, np.int64)
    records = schema.encode(values, zeros.astype(np.uint64), zeros.astype(np.uint64), 1, zeros, zeros, zeros)
    rows = np.full((n, schema.row_bytes), 0xEE, np.uint8)
    rows[:, PAGE_HEADER : PAGE_HEADER + schema.record_bytes] = as_rows(records)
    expected = np.empty((n, schema.tokens, width), np.float32)
    schema.decode(records, expected)
    inverse = torch.from_numpy(rng.integers(0, n, 7)).to(DEVICE)
    decoder = RecordDecoder(schema).to(DEVICE)
    wanted = torch.from_numpy(expected).to(dtype)
    on_device = torch.from_numpy(rows).to(DEVICE)
    assert _kernel(on_device) is not None
    # Triton's interpreter cuts a bfloat16 off where hardware rounds it.
    near = 2**-7 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0
    for rows_of, which in ((None, torch.arange(n)), (inverse, inverse.cpu())):
        found = decoder(on_device, dtype, rows_of).cpu()
        torch.testing.assert_close(found, wanted[which], rtol=near, atol=0)


def test_the_feature_on_the_device_gives_what_the_store_gives(tmp_path):
    known = KnownStore(tmp_path / "s", PAGED)
    known.publish({u: 1 for u in range(40)})
    users = np.array([3, 39, 3, 77, 0, 12, 12])
    with known.open() as store:
        wanted = store.lookup(users)
        feature = SummaryFeature(store, on_device=True, missing="learned").to(DEVICE)
        with torch.no_grad():
            feature.cold_start.fill_(0.5)
        for _ in range(20):  # buffers are used again
            found = feature(users)
            assert found.tokens.device.type == DEVICE
            known_rows = found.mask.cpu().numpy()
            np.testing.assert_array_equal(
                found.tokens.detach().cpu().numpy()[known_rows], wanted.tokens[known_rows]
            )
            assert (
                found.tokens[~found.mask] == 0.5
            ).all() and found.status.tolist() == wanted.status.tolist()
        found.tokens.sum().backward()
        assert (feature.cold_start.grad == 1).all()
