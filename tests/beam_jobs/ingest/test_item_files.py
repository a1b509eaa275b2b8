"""What item files say of items: vectors, categories and texts in every form, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.run.engines import HERE
from vista.data.logs.schema import UnreadableFile, WrongType
from vista.data.tables.undoing import undo
from vista.data.tables.warehouse import Warehouse
from vista.embedding.content import content_rows, word_vector

VECTORS = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
LISTS = [v.tolist() for v in VECTORS]


def run(tmp_path: Path, *items: Path, events: tuple[Path, ...] = (), **columns: str):
    count = len(list(tmp_path.glob("run-*")))
    options = IngestOptions(
        tuple(map(str, events)),
        str(tmp_path / "tables"),
        str(tmp_path / f"run-{count}"),
        items=tuple(map(str, items)),
        item_columns=columns,
        num_buckets=2,
    )
    return ingest.run(options, (HERE,), progress=False)


def content(tmp_path: Path):
    return Warehouse(tmp_path / "tables").open().read_content()


def fixed(path: Path) -> tuple[Path, dict[str, str]]:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), 4)
    pq.write_table(pa.table({"item_id": np.arange(5), "vector": flat}), path / "a.parquet")
    return path / "a.parquet", {}


def doubles(path: Path) -> tuple[Path, dict[str, str]]:
    vector = pa.array(LISTS, pa.large_list(pa.float64()))
    pq.write_table(pa.table({"sku": np.arange(5), "embed": vector}), path / "a.parquet")
    return path / "a.parquet", {"item_id": "sku", "vector": "embed"}


def npz(path: Path) -> tuple[Path, dict[str, str]]:
    np.savez(path / "a.npz", item_ids=np.arange(5, dtype=np.uint32), embedding=VECTORS.astype(np.float64))
    return path / "a.npz", {}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def npy(path: Path) -> tuple[Path, dict[str, str]]:
    np.save(path / "a.npy", VECTORS)
    np.save(path / "b.npy", np.arange(5))
    return path / "a.npy", {"item_id": str(path / "b.npy")}


def npy_beside(path: Path) -> tuple[Path, dict[str, str]]:
    np.save(path / "a.npy", VECTORS)
    (path / "a.ids.txt").write_text("".join(f"{i}\n" for i in range(5)))
    return path / "a.npy", {}


def jsonl(path: Path) -> tuple[Path, dict[str, str]]:
    rows = [json.dumps({"item_id": i, "vector": v}) for i, v in enumerate(LISTS)]
    (path / "a.jsonl").write_text("\n".join(rows))
    return path / "a.jsonl", {}


def csv(path: Path) -> tuple[Path, dict[str, str]]:
    rows = [f'{i},"{" ".join(map(str, v))}"' for i, v in enumerate(LISTS)]
    (path / "a.csv").write_text("item_id,vector\n" + "\n".join(rows))
    return path / "a.csv", {}


@pytest.mark.parametrize("form", [fixed, doubles, npz, npy, npy_beside, jsonl, csv], ids=lambda f: f.__name__)
def test_vectors_of_items_are_the_same_from_every_form_and_need_no_events(tmp_path, form):
    file, columns = form(tmp_path)
    record = run(tmp_path, file, **columns)
    found = content(tmp_path)
    assert (record.exit_code, record.counts["items"], record.counts["vectors"]) == (0, 5, 5)
    np.testing.assert_allclose(found.vector, VECTORS, rtol=1e-6)
    assert found.item.tolist() == found.vector_of.tolist() == [0, 1, 2, 3, 4]
    assert run(tmp_path, file, **columns).counts["known_files"] == 1


def test_rows_with_a_bad_vector_are_letters_and_repeated_items_are_counted(tmp_path):
    lists = [*LISTS, LISTS[0][:3], [1.0, float("nan"), 0.0, 0.0], [0.0] * 4, None, [1.0, 2.0, 3.0, 4.0]]
    ids = [*range(5), 5, 6, 7, 8, 0]
    pq.write_table(pa.table({"item_id": ids, "vector": pa.array(lists)}), tmp_path / "a.parquet")
    record = run(tmp_path, tmp_path / "a.parquet")
    letters = pq.read_table(tmp_path / "run-0" / "dead-letters.parquet")
    assert record.exit_code == 3 and record.counts["items_repeated"] == 1
    assert letters["reason"].to_pylist() == ["vector_width", "vector_not_finite"]
    assert letters["row"].to_pylist() == [5, 6]
    found = content(tmp_path)
    assert found.item.tolist() == [0, 1, 2, 3, 4, 7, 8]
    assert found.item[found.vector_of].tolist() == [0, 1, 2, 3, 4]  # zeros alone are no vector
    assert found.vector[0].tolist() == [1.0, 2.0, 3.0, 4.0]  # the last row has its say


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda p: np.save(p / "b.npy", VECTORS), UnreadableFile, r"b\.npy: expected the ids .*item_id=ids\.npy"),
        (lambda p: np.savez(p / "b.npz", ids=np.arange(4), vectors=VECTORS), UnreadableFile,
         r"b\.npz: expected an id for each of 5 vectors, found 4 ids"),
        (lambda p: np.savez(p / "b.npz", ids=np.arange(5), other=np.arange(5), v=VECTORS), None, ""),
        (lambda p: np.savez(p / "b.npz", one=np.arange(5), other=np.arange(5), v=VECTORS), UnreadableFile,
         r"b\.npz: expected one array of ids \[M\], found one int64 \[5\].*--item-column item_id=one"),
        (lambda p: np.savez(p / "b.npz", ids=np.arange(5), v=np.array([{}], object)), UnreadableFile, r"b\.npz"),
        (lambda p: (p / "b.npy").write_bytes(b"no array"), UnreadableFile, r"b\.npy"),
        (lambda p: cut(npz(p)[0].rename(p / "b.npz")), UnreadableFile, r"b\.npz: expected arrays of numbers as numpy"),
        (lambda p: pq.write_table(pa.table({"item_id": [1], "vector": [[1.0, 2.0]]}), p / "b.parquet"), WrongType,
         r"b\.parquet: column 'vector' .*expected vectors of 4 numbers as in the tables, found 2 in row 0"),
        (lambda p: pq.write_table(pa.table({"item_id": [1], "vector": ["red"]}), p / "b.parquet"), WrongType,
         r"b\.parquet: column 'vector': expected a list of numbers, found string.*--item-column vector="),
        (lambda p: pq.write_table(pa.table({"sku": [1], "name": ["red"]}), p / "b.parquet"), Exception,
         r"b\.parquet: expected one column 'item_id'.*--item-column item_id=sku"),
    ],
    ids=["no-ids", "fewer-ids", "likely-name", "two-arrays", "object", "no-array", "cut", "width", "text", "no-item"],
)  # fmt: skip
def test_a_file_of_vectors_that_cannot_be_meant_is_refused_with_its_name_and_an_example(
    tmp_path, make, error, says
):
    run(tmp_path, fixed(tmp_path)[0])
    make(tmp_path)
    (file,) = tmp_path.glob("b.*")
    if error is None:
        assert run(tmp_path, file).exit_code == 0
        return
    with pytest.raises(error, match=says):
        run(tmp_path, file)
    assert len(content(tmp_path)) == 5


def test_names_words_and_vectors_may_come_in_any_order_and_the_newest_of_each_holds(tmp_path):
    rows = [
        {"item_id": "b", "name": "Bee", "category": ["x", "y"], "text": "A bee"},
        {"item_id": "a", "name": "Zed"},
    ]
    (tmp_path / "first.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path, tmp_path / "first.jsonl")
    events = [f"u,{i},view,{1_700_000_000_000 + k}" for k, i in enumerate("abc")]
    (tmp_path / "events.csv").write_text("user_id,item_id,action,timestamp_ms\n" + "\n".join(events))
    run(tmp_path, events=(tmp_path / "events.csv",))
    np.savez(tmp_path / "v.npz", ids=np.array(["b", "c"]), vectors=VECTORS[:2])
    run(tmp_path, tmp_path / "v.npz")
    (tmp_path / "later.csv").write_text("item_id,name,category\nc,Cee,z\nb,Bumblebee,\n")
    last = run(tmp_path, tmp_path / "later.csv")
    tables = Warehouse(tmp_path / "tables").open()
    items, told = tables.read_items(), tables.read_content()
    assert sorted(items.name) == ["Bumblebee", "Cee", "Zed"] and items.events.sum() == 3
    named = dict(zip(items.item.tolist(), items.name, strict=True))
    by_name = {named[i]: k for k, i in enumerate(told.item.tolist())}
    assert [told.category[by_name[n]] for n in ("Bumblebee", "Cee")] == ["x|y", "z"]
    assert told.text[by_name["Bumblebee"]] == "A bee" and told.width == 4 and len(told.vector) == 2
    undo(tables, last.run_id)
    assert sorted(tables.read_items().name) == ["Bee", "Zed", "c"]


def test_words_are_as_near_as_they_share_words_and_rows_hold_what_the_model_reads(tmp_path):
    one, other = word_vector("Film|Drama", "The quiet sea"), word_vector("film | drama", "the quiet SEA")
    assert (one == other).all() and np.linalg.norm(one) == pytest.approx(1)
    far = word_vector("Tools", "Hammer, steel")
    near = word_vector("Film", "A quiet sea")
    assert one @ near > 0.4 > abs(one @ far) and not word_vector("", " - ").any()
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"item_id": i, "vector": v, "category": "x"}) for i, v in enumerate(LISTS))
    )
    run(tmp_path, tmp_path / "a.jsonl")
    ids, rows = content_rows(content(tmp_path), 4, 128)
    assert rows.shape == (5, 132) and len(ids) == 5
    np.testing.assert_allclose(np.linalg.norm(rows[:, :4], axis=1), 1, rtol=1e-5)
    assert content_rows(content(tmp_path), 0, 0)[1].shape == (0, 0)
    assert (
        content_rows(content(tmp_path), 3, 128)[1][:, :3] == 0
    ).all()  # vectors of another width are not read
