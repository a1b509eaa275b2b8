"""Laws of the generated lives: same options, same rows; a lifetime has something to win."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vista.config import from_text
from vista.data import generator
from vista.data.generator import (
    GeneratorOptions,
    content_vectors,
    generate,
    lives,
    popular_items,
    user_lengths,
)
from vista.errors import ConfigError

SMALL = GeneratorOptions(users=60, events=12_000, min_events=20, max_events=4_000, slate=5, slates_per_user=3)


def table(files: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in files])


def test_the_same_options_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "BLOCK_EVENTS", 5_000)
    one = generate(SMALL, tmp_path / "one")
    again = generate(SMALL, tmp_path / "again")
    assert len(one.events) > 1 and one.event_rows == 12_000
    assert table(one.events).equals(table(again.events))
    assert table(one.impressions).equals(table(again.impressions))
    other = generate(dataclasses.replace(SMALL, seed=1), tmp_path / "other")
    assert not table(one.events).equals(table(other.events))
    assert from_text(GeneratorOptions, (tmp_path / "one" / "options.json").read_text()) == SMALL


def test_blocks_do_not_depend_on_the_process_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "BLOCK_EVENTS", 1_500)
    options = GeneratorOptions(users=6, events=6_000, slate=0, niche_items=2)
    assert table(generate(options, tmp_path / "a", workers=2).events).equals(
        table(generate(options, tmp_path / "b").events)
    )


def test_lengths_are_heavy_tailed_and_add_up():
    lengths = user_lengths(GeneratorOptions(users=20_000, events=2_000_000, min_events=10, max_events=50_000))
    assert lengths.sum() == 2_000_000 and lengths.min() >= 10 and lengths.max() <= 50_000
    assert np.sort(lengths)[-200:].sum() > 0.25 * lengths.sum()


def test_files_have_the_types_of_a_log_and_held_back_events_are_the_last(tmp_path):
    options = dataclasses.replace(SMALL, held_back_days=100.0, user_ids="string")
    made = generate(options, tmp_path)
    events, later = table(made.events), table(made.later)
    assert later.num_rows == made.later_rows > 0 and events.num_rows == made.event_rows
    assert made.event_rows + made.later_rows == 12_000
    assert events.schema.field("user_id").type == pa.string()
    assert pa.compute.max(events["timestamp_ms"]).as_py() < pa.compute.min(later["timestamp_ms"]).as_py()
    shown = table(made.impressions)
    per_request = shown.group_by("request_id").aggregate([("position", "count"), ("position", "max")])
    assert set(per_request["position_count"].to_pylist()) == {5}
    assert set(per_request["position_max"].to_pylist()) == {4}
    assert json.loads((tmp_path / "options.json").read_text())["user_ids"] == "string"


def test_times_ascend_within_a_life_and_a_request_is_one_visit():
    life = lives(SMALL, 0, np.array([500, 3, 900]), 0)
    same = life.user[1:] == life.user[:-1]
    assert (np.diff(life.time)[same] >= 0).all() and (np.diff(life.request)[same] >= 0).all()
    assert (life.request[1:] != life.request[:-1])[~same].all()


def test_items_rarely_repeat():
    options = GeneratorOptions()
    life = lives(options, 0, np.full(20, 5_000), 0)
    seen = np.unique(life.user * options.items + life.item)
    assert len(seen) > 0.6 * len(life.item)


def test_a_returned_interest_is_foretold_by_old_events_and_not_by_the_last_thousand():
    options = GeneratorOptions()
    n, window, rng = 8_000, 1_024, np.random.default_rng(0)
    life = lives(options, 0, np.full(12, n), 0)
    ranks: dict[str, list[float]] = {"all": [], "window": []}
    for u in range(12):
        item = life.item[u * n : (u + 1) * n]
        niche, kind = item // options.niche_items, life.kind[u * n : (u + 1) * n]
        for t in np.flatnonzero(kind == 1):
            before = np.flatnonzero(niche[:t] == niche[t])
            if t < 4_000 or not len(before) or t - before[-1] <= window:
                continue
            candidates = np.append(popular_items(options, rng, 99), item[t]) // options.niche_items
            for name, start in (("all", 0), ("window", t - window)):
                count = np.bincount(niche[start:t], minlength=options.clusters * options.niches)[candidates]
                ranks[name].append(
                    1 / (1 + (count[:-1] > count[-1]).sum() + (count[:-1] == count[-1]).sum() / 2)
                )
    assert len(ranks["all"]) > 200
    assert np.mean(ranks["all"]) > np.mean(ranks["window"]) + 0.3


def test_content_vectors_tell_the_cluster_and_do_not_depend_on_their_company():
    options = GeneratorOptions(clusters=8, niches=2, niche_items=8, content_width=16)
    items = np.arange(options.items)
    vectors = content_vectors(options, items)
    assert np.array_equal(vectors[5:9], content_vectors(options, items[5:9]))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alike = vectors @ vectors.T
    cluster = items // 16
    same = cluster[:, None] == cluster[None]
    assert alike[same].mean() > 0.6 > 0.2 > abs(alike[~same].mean())


def test_options_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match="events"):
        GeneratorOptions(users=10, min_events=5, events=20)
    with pytest.raises(ConfigError, match="order"):
        GeneratorOptions(order="random")
