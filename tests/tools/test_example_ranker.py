"""The example ranker of docs/downstream.md, on a small store that the jobs themselves made."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cache_store import Store
from cache_store.torch.sequence import ItemVectors
from tools.studies import downstream
from vista import bundle as bundles
from vista.config import EmbeddingConfig, RankerConfig, SummarizerConfig, TokenConfig, to_dict

LIVES = {"users": 40, "min_events": 150, "max_events": 500, "clusters": 16, "slates_per_user": 64, "slate": 8}
MODEL = {
    "width": 16,
    "embedding": to_dict(EmbeddingConfig(rows=512)),
    "tokens": to_dict(TokenConfig(items=512, clusters=16, sequence=32, places=8)),
    "summarizer": to_dict(SummarizerConfig(seeds=0, layers=1, chunk=64)),
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
    tokens = bundles.load(folder / "home" / "model").model.tokens
    torch.manual_seed(0)
    content, surfaces = torch.from_numpy(log.content), int(log.surface.max()) + 1
    codes = torch.zeros(len(log.ids) + 1, 2, dtype=torch.int64)
    made = ranker.Dlrm(
        surfaces, content, codes, 4, horizons=3, addressed=3, clusters=tokens.cluster, near=True
    )
    return made.eval()


def test_the_sequence_is_the_heaviest_items_of_the_history_before_the_watermark_with_their_counts(
    folder, log, store
):
    """What a team's own attention reads, against the log: items by recency-weighted count, and how often each came."""
    summaries = ranker.Summaries(store, log.ids, 16)
    rows = ranker.read_rows(folder / "logs" / "part-3", log)
    watermark = {m.generation: m.watermark_ms for m in store.generations()}
    batch = summaries.rows(rows, HOUR_MS).batch(np.arange(len(rows.user)))
    found = summaries.split(batch)
    checked = 0
    for i in np.flatnonzero(found.there.numpy())[:40]:
        seen = (log.user == rows.user[i]) & (log.time <= watermark[batch["generation"][i]])
        mine = log.item[seen]
        later = np.arange(len(mine))[::-1]
        weight = np.bincount(mine, 0.5 ** (later / 2_048))
        token, mass = found.sequence.item[i].numpy(), found.sequence.mass[i].numpy()
        kept = token > 0
        np.testing.assert_allclose(mass[kept, 0], np.bincount(mine)[token[kept]], rtol=0.1)
        np.testing.assert_allclose(mass[kept, 1], weight[token[kept]], rtol=0.1)
        assert kept.sum() == min(16, len(np.unique(mine)))
        assert weight[token[kept]].min() >= np.sort(weight)[-16:].min() * 0.9
        checked += 1
    assert checked


def test_users_without_any_token_have_gradients_and_raw_events_are_tokens_of_mass_one():
    torch.manual_seed(0)
    reader = downstream.example("dlrm_model").SequenceReader(8, 3, 2)
    candidate, token, mass = torch.randn(2, 4, 8), torch.randn(2, 5, 8), torch.zeros(2, 5, 3)
    mass[0] = 1.0
    codes = torch.zeros(2, 4, 2, dtype=torch.int64), torch.zeros(2, 5, 2, dtype=torch.int64)
    read, known = reader(candidate, token, mass, *codes)
    (read.sum() + known.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.grad is not None)
    assert known[0, :, :2].min() > known[1, :, :2].max()
    history = ranker.raw({"raw": torch.tensor([[3, 4, 0], [0, 0, 0]])})
    assert history.there.tolist() == [True, False]
    assert history.sequence.mass[..., 0].tolist() == [[1, 1, 0], [0, 0, 0]]


def test_no_row_reads_a_summary_made_after_it_and_rows_of_later_parts_read_later_generations(
    folder, log, store
):
    watermark = {m.generation: m.watermark_ms for m in store.generations()}
    assert len(watermark) == 3
    summaries, read = ranker.Summaries(store, log.ids), []
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
    model, summaries = model_of(folder, log, store), ranker.Summaries(store, log.ids)
    rows = ranker.read_rows(folder / "logs" / "part-3", log)
    as_of = summaries.rows(rows, HOUR_MS)
    generation = np.array(as_of.batch(np.arange(len(rows.user)))["generation"])
    kept = np.flatnonzero(generation == store.manifest.generation)[:50]
    assert len(kept)
    columns = {name: column[kept] for name, column in rows.columns.items()}
    served = ranker.Server(model, summaries).score(rows.user[kept], columns)
    read = ranker.predict(model, as_of, summaries.split)
    np.testing.assert_allclose(served, read[kept], rtol=1e-5, atol=1e-6)


def test_users_without_a_summary_are_scored_as_if_the_store_had_never_heard_of_them(folder, log, store):
    model = model_of(folder, log, store)
    rows = ranker.read_rows(folder / "logs" / "part-3", log)
    columns = {name: np.repeat(column[:1], 2, 0) for name, column in rows.columns.items()}
    strangers = np.array([1, 1 + len(model.user.weight)])  # two ids in one row of the user table
    one, two = ranker.Server(model, ranker.Summaries(store, log.ids)).score(strangers, columns)
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all()


def test_a_candidate_is_told_all_masses_of_the_tokens_that_share_its_code_at_each_level():
    reader = downstream.example("dlrm_model").SequenceReader(8, 2, 2)
    mass = torch.tensor([[[3.0, 1.0], [4.0, 2.0], [5.0, 0.5], [0.0, 0.0]]])
    code, of_token = torch.tensor([[[1, 0], [2, 1]]]), torch.tensor([[[1, 0], [1, 0], [3, 0], [2, 1]]])
    _, known = reader(torch.randn(1, 2, 8), torch.randn(1, 4, 8), mass, code, of_token)
    fine, coarse = known[0, :, 2:4].expm1(), known[0, :, 4:].expm1()
    torch.testing.assert_close(fine, torch.tensor([[7.0, 3.0], [0.0, 0.0]]))
    torch.testing.assert_close(coarse, torch.tensor([[12.0, 3.5], [0.0, 0.0]]))


def test_raw_events_are_as_old_as_the_summary_or_up_to_the_request_and_places_hold_all_that_it_counts(
    folder, log, store
):
    marks = sorted(m.watermark_ms for m in store.generations())
    rows = ranker.read_rows(folder / "logs" / "part-3", log, 12, marks, HOUR_MS)
    own = ItemVectors.read(folder / "home" / "model" / "vectors.npz").with_vectors(log.ids, log.content[1:])
    codes = ranker.Codes.of(log.content, (8, 2))
    assert codes.ladder[:, 0].tolist() == [*range(8)] and set(codes.ladder[:, 1].tolist()) == {0, 1}
    summaries = ranker.Summaries(store, log.ids, 8, codes, own.places)
    batch = summaries.rows(rows, HOUR_MS).batch(np.arange(len(rows.user)))
    found = summaries.split(batch)
    for i in range(0, len(rows.user), max(1, len(rows.user) // 20)):
        mine = (log.user == rows.user[i]) & (log.time < rows.time[i])
        old = [m for m in marks if m <= rows.time[i] - HOUR_MS]
        seen = mine & (log.time <= (old[-1] if old else -1))
        for name, events in (("raw", log.item[seen]), ("raw_fresh", log.item[mine])):
            wanted = events[::-1][:12]
            assert rows.columns[name][i].tolist() == [*wanted, *[0] * (12 - len(wanted))]
        if found.there[i]:
            assert float(found.sequence.mass[i, :, 0].sum()) == pytest.approx(seen.sum(), rel=0.1)


def test_a_study_whose_last_arm_reads_raw_events_tells_no_time_of_a_request():
    told = ("train_requests", "test_requests", "test_users", "sequence_bytes", "pooled_bytes", "raw_events")
    found = dict.fromkeys(told, 1) | {"figures": {"auc_raw": (0.9, 0.8, 1.0)}, "request_ms": None}
    result = downstream.Result(params={})
    downstream._figures(
        result, found | {"with_summary": 1.0, "generations": ["1"], "cpu_seconds": {"raw": 1.0}}, ""
    )
    assert "request" not in result.figures and result.figures["auc_raw"].value == 0.9


def test_the_example_runs_from_the_command_line_and_reports_both_sides(folder, capsys):
    where = ["--home", str(folder / "home"), "--logs", str(folder / "logs")]
    ranker.main(
        [*where, "--epochs", "1", "--arms", "without,raw,raw_fresh,pooled,near,with", "--tokens", "16"]
    )
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0] for line in lines}
    assert {"auc_without", "auc_with", "auc_gain", "ne_without", "ne_with", "ne_gain", "request_ms"} <= told


@pytest.mark.parametrize("own", [False, True], ids=["of the bundle", "of the reader"])
def test_what_the_page_gives_to_paste_runs_as_it_stands_and_starts_as_matching(folder, log, own):
    page = (downstream.EXAMPLES.parent / "downstream.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    read, attend = (next(b for b in blocks if word in b) for word in ("ItemVectors.read", "class Attend"))
    if not own:
        read = "\n".join(line for line in read.splitlines() if "with_vectors" not in line)
    users = np.append(np.unique(log.user)[:6], -5)  # the last has no summary; of clusters there are 16
    given = {"home": folder / "home", "ids": log.ids, "mine": log.content[1:], "users": users}
    given["now_ms"] = torch.full((7,), int(log.time.max()))
    exec(read, given)
    exec(attend, given)
    seen, vectors = given["seen"], given["vectors"]
    assert seen.tokens.shape == (7, 112, vectors.vectors.shape[1]) and seen.last.shape == (7, 112, 2)
    heaviest = given["store"].lookup(users).heaviest(96)
    some = seen.masses[:, :96, 1] > 0
    assert torch.equal(seen.items[some], torch.from_numpy(heaviest.items)[some]) and some[:6, 0].all()
    touched = torch.from_numpy(heaviest.items[:, :1].clip(0))
    candidate = torch.cat([vectors(touched), -vectors(touched)], 1)
    torch.manual_seed(0)
    model = given["Attend"](vectors.vectors.shape[1])
    what, odds = model(candidate, seen, given["since"])
    assert (odds[:6, 0] > odds[:6, 1] + 2).all() and torch.equal(odds[6, 0], odds[6, 1])
    (what.sum() + odds.sum()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
