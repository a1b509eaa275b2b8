"""The example ranker of docs/downstream.md, on a small store that the jobs themselves made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cache_store import Store
from tools.studies import downstream
from vista import bundle as bundles
from vista.config import EmbeddingConfig, RankerConfig, SlotConfig, SummarizerConfig, to_dict

LIVES = {"users": 40, "min_events": 150, "max_events": 500, "clusters": 16, "slates_per_user": 64, "slate": 8}
MODEL = {
    "width": 16,
    "embedding": to_dict(EmbeddingConfig(rows=512)),
    "slots": to_dict(SlotConfig(buckets=64, clusters=16)),
    "summarizer": to_dict(SummarizerConfig(seeds=4, layers=1, chunk=64)),
    "ranker": to_dict(RankerConfig(layers=1, recent=8)),
}
HOUR_MS = 3_600_000

pytestmark = pytest.mark.xdist_group("example_ranker")

ranker = downstream.example("dlrm_ranker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("downstream")
    downstream.prepare(made, steps=3, lives=LIVES, model=MODEL)
    return made


@pytest.fixture(scope="module")
def store(folder):
    with Store.open(folder / "home" / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def log(folder):
    return ranker.read_log(folder / "logs")


def model_of(folder, log, store):
    memory = bundles.load(folder / "home" / "model").model.slots
    torch.manual_seed(0)
    content, surfaces = torch.from_numpy(log.content), int(log.surface.max()) + 1
    made = ranker.Dlrm(
        len(log.ids) + 1, surfaces, content, 4, seeds_width=store.manifest.schema.width, memory=memory
    )
    return made.eval()


def test_no_row_reads_a_summary_made_after_it_and_rows_of_later_parts_read_later_generations(
    folder, log, store
):
    watermark = {m.generation: m.watermark_ms for m in store.generations()}
    assert len(watermark) == 3
    summaries, read = ranker.Summaries(store), []
    for part in ("part-1", "part-2", "part-3"):
        rows = ranker.read_rows(folder / "logs" / part, log)
        batch = summaries.rows(rows, HOUR_MS).batch(np.arange(len(rows.user)))
        for generation, time_ms in zip(batch["generation"], batch["time"].tolist(), strict=True):
            assert not generation or watermark[generation] <= time_ms - HOUR_MS
        read.append(set(batch["generation"]))
    assert sorted(watermark)[0] in read[0] and sorted(watermark)[2] in read[2]
    assert sorted(watermark)[2] not in read[0] | read[1]


def test_recent_events_of_a_row_are_those_before_its_time(folder, log):
    rows = ranker.read_rows(folder / "logs" / "part-2", log)
    for i in range(0, len(rows.user), max(1, len(rows.user) // 20)):
        mine = log.item[(log.user == rows.user[i]) & (log.time < rows.time[i])][::-1][: ranker.RECENT]
        np.testing.assert_array_equal(rows.columns["recent"][i, : len(mine)], mine)
        assert not rows.columns["recent"][i, len(mine) :].any()


def test_serving_from_the_live_generation_scores_as_the_as_of_rows_that_read_it(folder, log, store):
    model, summaries = model_of(folder, log, store), ranker.Summaries(store)
    rows = ranker.read_rows(folder / "logs" / "part-3", log)
    as_of = summaries.rows(rows, HOUR_MS)
    generation = np.array(as_of.batch(np.arange(len(rows.user)))["generation"])
    kept = np.flatnonzero(generation == store.manifest.generation)[:50]
    assert len(kept)
    columns = {name: column[kept] for name, column in rows.columns.items()}
    served = ranker.Server(model, store).score(rows.user[kept], rows.time[kept], columns)
    np.testing.assert_allclose(served, ranker.predict(model, as_of, summaries)[kept], rtol=1e-5, atol=1e-6)


def test_users_without_a_summary_are_scored_as_if_the_store_had_never_heard_of_them(folder, log, store):
    model = model_of(folder, log, store)
    rows = ranker.read_rows(folder / "logs" / "part-3", log)
    columns = {name: np.repeat(column[:1], 2, 0) for name, column in rows.columns.items()}
    strangers = np.array([1, 1 + len(model.user.weight)])  # two ids in one row of the user table
    now = rows.time[:1].repeat(2)
    one, two = ranker.Server(model, store).score(strangers, now, columns)
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all()


def test_the_example_runs_from_the_command_line_and_reports_both_sides(folder, capsys):
    where = ["--home", str(folder / "home"), "--logs", str(folder / "logs")]
    ranker.main([*where, "--epochs", "1", "--arms", "without,with"])
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0] for line in lines}
    assert {"auc_without", "auc_with", "auc_gain", "ne_without", "ne_with", "ne_gain", "request_ms"} <= told
