"""Law 1: what is read from the store equals what the model computes.

Also: decoding within each codec's stated error, tests/cache_store/format/test_codecs.py; in torch bit for bit,
tests/cache_store/torch/test_torch_feature.py.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import World, all_events, assert_close, stacked

from beam_jobs.generation.summarize import schema_of
from cache_store import Store
from cache_store.testing import stored
from cache_store.torch.feature import SummaryFeature
from cache_store.torch.sequence import ItemVectors
from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.model import VistaModel


@pytest.fixture(scope="module")
def read(home: World):
    """Users, their events, the model, and the store that the job made of them."""
    with home.store() as store:
        yield *all_events(home), bundle.load(home.bundle).model, store


@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=12), strangers=st.integers(0, 2))
def test_law_1_any_record_read_is_what_the_model_computes_of_that_history(read, rows, strangers):
    users, events, model, store = read
    own = events.select(np.array(rows))
    found = store.lookup(np.concatenate([users[rows], 10**6 + np.arange(strangers)]))
    assert found.status.tolist() == [0] * len(rows) + [2] * strangers
    assert_close(found.tokens[: len(rows)], stacked(model.summarizer.summarize(own).tokens))
    np.testing.assert_array_equal(found.event_count[: len(rows)], own.lengths)
    np.testing.assert_array_equal(found.last_event_ms[: len(rows)], own.time[own.offsets[1:] - 1])
    assert not found.tokens[len(rows) :].any()


C, ITEMS = 8, np.arange(20) * 2**58 - 2**62  # far beyond what a float tells apart
EVERY = ModelConfig(
    width=8,
    embedding=EmbeddingConfig(rows=64),
    # so long a half-life tells no events from each other: masses are equal on purpose
    tokens=TokenConfig(
        items=6, clusters=9, half_lives_events=(float("inf"), 2.0**24, 4.0), sequence=9, places=4
    ),
    summarizer=SummarizerConfig(chunk=C),
)
HEAVIEST = dataclasses.replace(EVERY, tokens=dataclasses.replace(EVERY.tokens, clusters_told=3))
MODELS = [VistaModel(config).eval() for config in (EVERY, HEAVIEST)]


@pytest.mark.parametrize("model", MODELS, ids=["all clusters", "the heaviest"])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.sampled_from([0, 1, C - 1, C, C + 1, 2 * C, 9 * C + 3]), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
    known=st.sampled_from([20, 20, 11]),
    entries=st.integers(1, 6),
    data=st.data(),
)
def test_law_1_a_sequence_of_the_store_is_the_models_own_to_the_bit(
    model, lengths, seed, known, entries, data
):
    random = np.random.default_rng(seed)
    model.set_clusters(ITEMS[:known], random.integers(0, 9, known))
    n = sum(lengths) + 1
    item = np.append(random.choice(ITEMS, n - 1), 2**61 + 77)  # the last user, of one event, shall be damaged
    time = 1_600_000_000_000 + np.cumsum(random.integers(0, 9_000_000, n))
    found = model.summarizer.summarize(Events.of([*lengths, 1], item=item, time=time)).tokens
    asked = data.draw(
        st.lists(st.integers(0, len(lengths) + 1), min_size=1, max_size=12)
    )  # the last is unknown
    with tempfile.TemporaryDirectory() as folder:
        stored(f"{folder}/s", schema_of(model, "int64", {}), found).close()
        (shard,) = Path(folder).rglob("shard-*.mdb")
        shard.write_bytes(shard.read_bytes().replace((2**61 + 77).to_bytes(8, "little"), bytes(8)))
        with Store.open(f"{folder}/s") as store:
            feature = SummaryFeature(
                store, on_device=bool(seed % 2), missing="learned" if seed % 3 else "zeros"
            )
            for parameter in feature.parameters():  # what is learned for the missing is no mass and no age
                torch.nn.init.ones_(parameter)
            with torch.no_grad():
                batch = feature(np.array(asked))
    cluster = model.tokens.cluster_numpy(ITEMS[:known])
    centres = model.tokens.cluster_vectors.detach().numpy()
    vectors = ItemVectors(ITEMS[:known], model.items.vectors(ITEMS[:known]), cluster, centres)
    seen = batch.sequence(vectors, tokens=entries + 4, places=4, ages=True)
    there = torch.tensor(asked) < len(lengths)
    assert batch.mask.tolist() == there.tolist() and batch.status[~there].tolist() == [
        3 if a == len(lengths) else 2 for a in np.array(asked)[~there.numpy()]
    ]
    model.tokens.sequence_items = entries
    held = model.tokens.unpack(torch.cat([batch.group(g) for g in model.tokens.rows], 1))
    wanted = model.tokens.sequence(held, model.items.vector)
    assert (
        not seen.masses[~there].any() and not seen.last[~there].any() and seen.log_mass[~there].isinf().all()
    )
    # of an item that is in no catalogue the model alone knows the cluster
    told = slice(None) if known == 20 else slice(entries)
    pairs = [(seen.masses, wanted.mass), (seen.last, wanted.last), (seen.items, wanted.item)]
    pairs += [(seen.places, wanted.place)] if known == 20 else []
    assert all(torch.equal(mine[there, told], theirs[there, told]) for mine, theirs in pairs)
    catalogued = (seen.log_mass > -torch.inf) & there[:, None]
    if known == 20:
        torch.testing.assert_close(seen.tokens[catalogued], wanted.vector[catalogued])
    if known < 20:
        ages = held.cluster_last.gather(1, seen.places[..., None].expand(-1, -1, 2))
        assert torch.equal(seen.last[there, entries:], ages[there])
