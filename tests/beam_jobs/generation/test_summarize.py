"""Summarize, end to end on small real tables: laws 1, 3 and 8, failures, and runs cut short."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_worlds import (
    BUCKETS,
    CONFIG,
    LOST_STREAMS,
    START,
    World,
    all_events,
    assert_close,
    histories,
    save_bundle,
    stacked,
)

from beam_jobs.errors import BucketFailed, ExitCode, InputFailed, OptionsError, RunOptionsDiffer
from beam_jobs.generation import refresh, summarize
from beam_jobs.run.record import RunDirectory, RunRecord
from beam_jobs.run.runner import local_args
from cache_store.errors import FormatUnknown
from cache_store.format.keys import bucket_of
from vista import bundle
from vista.data.events import Events
from vista.data.tables.appending import append
from vista.model import VistaModel


def test_law_1_what_the_store_gives_equals_what_the_model_computes(world):
    record = summarize.run(world.summarize())
    users, events = all_events(world)
    summary = bundle.load(world.bundle).model.summarizer.summarize(events)
    with world.store() as store:
        found = store.lookup(users)
        assert (found.status == 0).all()
        assert_close(found.tokens, stacked(summary.tokens))
        np.testing.assert_array_equal(found.event_count, events.lengths)
        np.testing.assert_array_equal(found.last_event_ms, events.time[events.offsets[1:] - 1])
        assert store.manifest.watermark_ms == events.time.max()
        assert store.manifest.digest == record.digests["content"]
        assert record.counts["users"] == len(users) == store.manifest.records
    assert record.exit_code == ExitCode.DONE
    assert RunRecord.load(record.path) == record


@pytest.fixture(scope="module")
def reference(tmp_path_factory, bundle_path):
    """Tables of this module and the digest of an in-memory run over them."""
    rng = np.random.default_rng(11)
    users = np.arange(60, dtype=np.int64) * 31 - 700
    lengths = rng.geometric(1 / 25, len(users))
    lengths[9] = 700
    world = World(tmp_path_factory.mktemp("reference"), bundle_path).create()
    world.add(users, histories(rng, lengths))
    return world, summarize.run(world.summarize()).digests["content"]


def test_law_3_the_digest_is_the_same_through_a_job_service_and_its_workers(reference, portable_args):
    world, digest = reference
    record = summarize.run(world.summarize(store="store-portable", run="run-portable"), portable_args)
    assert record.digests["content"] == digest


@pytest.mark.filterwarnings(LOST_STREAMS)
def test_a_killed_worker_process_is_made_up_for_with_the_same_digest(reference, tmp_path, monkeypatch):
    world, digest = reference
    marker = tmp_path / "killed"
    # A worker process imports this at its start: it dies when it first renames a receipt, unless one has.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        f"    if event == 'os.rename' and '/receipts/' in str(args[1]) and not os.path.exists({str(marker)!r}):\n"
        f"        open({str(marker)!r}, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    record = summarize.run(
        world.summarize(store="store-killed", run="run-killed"), local_args("multi_processing", 2)
    )
    assert marker.exists()
    assert record.digests["content"] == digest


def test_tables_without_rows_give_a_generation_without_records(tmp_path, bundle_path):
    world = World(tmp_path, bundle_path).create()
    record = summarize.run(world.summarize())
    assert (record.counts["users"], record.counts["buckets"], record.exit_code) == (0, BUCKETS, 0)
    assert world.store().lookup(np.array([1, 2])).status.tolist() == [2, 2]


def test_a_model_of_other_tables_is_refused_and_names_it_has_not_seen_are_told(tmp_path, bundle_path):
    world = World(tmp_path, bundle_path).create()
    users = np.arange(4, dtype=np.int64)
    events = histories(np.random.default_rng(0), np.full(4, 5))
    append(world.tables, users, events, bucket_of(users, BUCKETS), "more", actions=(*CONFIG.actions, "share"))
    record = summarize.run(world.summarize())
    assert record.notes == ["actions that the model has not seen: share; it learns them by vista train"]

    swapped = dataclasses.replace(CONFIG, actions=CONFIG.actions[::-1])
    other = save_bundle(tmp_path / "swapped", VistaModel(swapped))
    for job, options in ((summarize, world.summarize), (refresh, world.refresh)):
        with pytest.raises(
            OptionsError, match=r"expected actions \['2', '1', '0'\].*found \['0', '1', '2', 'share'\]"
        ):
            job.run(dataclasses.replace(options(run="other"), bundle=str(other)))


def test_a_device_that_no_worker_has_is_a_fault_of_the_options(small_world):
    for device in ("nonsense", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(BucketFailed, match=f"--device.*{device}") as told:
            summarize.run(small_world.summarize(run=device, device=device))
        assert told.value.exit_code == ExitCode.BAD_INPUT


def test_string_users_and_buckets_without_users_are_summarised(tmp_path):
    path = save_bundle(tmp_path / "model", VistaModel(CONFIG), user_kind="string")
    world = World(tmp_path, path, kind="string").create(buckets=7)
    users = np.array(["ana", "ben", "çelik", "𝔷oe"], object)
    world.add(users, histories(np.random.default_rng(0), np.array([3, 20, 1, 70])))
    record = summarize.run(world.summarize())
    assert record.counts["written"] == 4
    found = world.store().lookup(["𝔷oe", "ana", "nobody"])
    assert found.status.tolist() == [0, 0, 2]
    assert found.event_count.tolist() == [70, 3, 0]


def test_law_8_a_user_whose_tokens_are_not_finite_is_a_dead_letter_and_spoils_no_neighbour(tmp_path):
    rng = np.random.default_rng(3)
    users = np.arange(50, dtype=np.int64)
    events = histories(rng, rng.geometric(1 / 20, len(users)))
    model = VistaModel(CONFIG).eval()
    path = save_bundle(tmp_path / "clean", model)
    clean = World(tmp_path / "a", path).create().add(users, events)
    summarize.run(clean.summarize())
    # One item's embedding is lost: whoever touched an item with that row has no summary.
    with torch.no_grad():
        first = torch.from_numpy(events.item[events.offsets[17] :][:1])
        before = model.items(first)
        rows = model.items.weight
        row = next(r for r in range(len(rows)) if torch.isin(rows[r], before).all())
        rows[row] = float("nan")
        lost = torch.isnan(model.items(torch.from_numpy(events.item))).any(dim=-1).numpy()
    touched = {int(u) for u in users[np.add.reduceat(lost, events.offsets[:-1]) > 0]}
    assert 0 < len(touched) < len(users) and 17 in touched
    broken = World(tmp_path / "b", save_bundle(tmp_path / "broken", model)).create().add(users, events)
    record = summarize.run(broken.summarize())
    assert record.exit_code == ExitCode.DEAD_LETTERS
    assert record.counts["users"] == record.counts["written"] + record.counts["dead_letters"] == len(users)
    letters = pq.read_table(Path(record.path) / "dead-letters.parquet")
    assert {int(u) for u in letters["user"].to_pylist()} == touched
    assert set(letters["reason"].to_pylist()) == {"not_finite"}
    rest = np.array(sorted(set(users.tolist()) - touched))
    with clean.store() as wanted, broken.store() as found:
        assert (found.lookup(np.array(sorted(touched))).status == 2).all()
        assert_close(found.lookup(rest).tokens, wanted.lookup(rest).tokens)


def test_tokens_that_a_codec_cannot_hold_are_dead_letters(tmp_path, bundle_path):
    world = World(tmp_path, bundle_path).create(1)
    many = 1 << 17  # one bucket of the slot memory counts more than float16 reaches
    events = Events.of(
        [3, many], item=np.full(many + 3, 5), time=START + np.arange(many + 3), surface=np.zeros(many + 3)
    )
    world.add(np.array([1, 2]), events)
    record = summarize.run(
        world.summarize(codecs={"seeds": "float32", "slots": "float16"}, max_events_in_memory=50_000)
    )
    assert record.counts["dead_letters"] == 1
    letters = pq.read_table(Path(record.path) / "dead-letters.parquet").to_pylist()
    assert [(row["user"], row["reason"]) for row in letters] == [("2", "unstorable")]
    assert world.store().lookup(np.array([1, 2])).status.tolist() == [0, 2]


def test_a_damaged_file_fails_its_bucket_leaves_the_old_generation_live_and_the_run_goes_on_from_there(world):
    first = summarize.run(world.summarize())
    files = world.tables.bucket_files()
    victim = Path(files[1][0].path.removeprefix("file://"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    options = world.summarize(run="second")
    with pytest.raises(BucketFailed, match="bucket-00001") as failed:
        summarize.run(options)
    assert failed.value.exit_code == ExitCode.BAD_INPUT
    assert world.store().manifest.generation == first.generation
    kept = RunDirectory(options.run_dir).receipts()
    assert kept and "bucket-00001" not in kept
    # One of the finished shards is damaged meanwhile, in a way that its size does not show.
    shard = next(Path(name) for name in next(iter(kept.values()))["files"] if name.endswith(".mdb"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    victim.write_bytes(whole)
    record = summarize.run(options)
    assert record.digests == first.digests
    assert world.store().manifest.generation == record.generation != first.generation
    assert world.store().verify().ok


def test_a_failing_bucket_of_worker_processes_is_one_error_without_stack_traces(small_world, capfd):
    victim = Path(small_world.tables.bucket_files()[1][0].path.removeprefix("file://"))
    victim.unlink()
    with pytest.raises(InputFailed, match=rf"{victim.name}.*restore it.*bucket-00001 of") as told:
        summarize.run(small_world.summarize(), local_args("multi_processing", 2))
    assert "\n" not in str(told.value) and "Traceback" not in capfd.readouterr().err


def test_a_run_that_was_killed_at_its_renames_continues_to_the_same_digest(small_world, killed_at):
    world = small_world
    whole = summarize.run(world.summarize(store="whole", run="whole-run"))
    outcomes = killed_at("summarize", world.summarize(), step=2)
    assert len(outcomes) > 8
    for outcome in outcomes:
        assert outcome["digest"] == whole.digests["content"], outcome
        assert outcome["generations"] == 1, outcome
        assert outcome["leftovers"] == [], outcome


def test_a_finished_run_is_not_run_again_and_other_options_are_refused(world):
    options = world.summarize()
    record = summarize.run(options)
    assert summarize.run(options) == record
    with pytest.raises(RunOptionsDiffer, match="max_events_in_memory"):
        summarize.run(dataclasses.replace(options, max_events_in_memory=7))


def test_an_older_snapshot_is_summarised_as_it_was(world):
    snapshot = world.tables.snapshot()
    before = summarize.run(world.summarize())
    users, _ = all_events(world)
    world.add(users[:9], histories(np.random.default_rng(1), np.full(9, 5), start=START + 10**8))
    again = summarize.run(world.summarize(run="run-2", store="again", snapshot=snapshot))
    assert again.digests == before.digests
    now = summarize.run(world.summarize(run="run-3", store="now"))
    assert now.digests != before.digests


def test_a_bundle_for_other_ids_and_a_store_of_other_buckets_are_refused(world, tmp_path):
    strings = save_bundle(tmp_path / "strings", VistaModel(CONFIG), user_kind="string")
    with pytest.raises(OptionsError, match="string user ids"):
        summarize.run(world.summarize(bundle=str(strings)))
    summarize.run(world.summarize())
    other = World(tmp_path / "other", world.bundle).create(buckets=2)
    with pytest.raises(OptionsError, match="2 shards"):
        summarize.run(dataclasses.replace(other.summarize(), store=str(world.path / "store")))
    with pytest.raises(OptionsError, match="nothing"):
        summarize.run(world.summarize(run="run-4", store="third", codecs={"nothing": "int8"}))
    with pytest.raises(FormatUnknown):  # not even a store was made
        world.store("third")


def test_buckets_are_those_of_the_store(world):
    summarize.run(world.summarize())
    with world.store() as store:
        for bucket in range(BUCKETS):
            users = store.users(bucket)
            assert (bucket_of(users, BUCKETS) == bucket).all() and (np.diff(users) > 0).all()
