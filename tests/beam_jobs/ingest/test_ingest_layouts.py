"""Public sets with long histories go in by their layout: a small file in the exact form of each, the events that come
out. Layouts that cannot be had say so in docs/data.md (Last.fm-360K has no times)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.ingest import job as ingest
from beam_jobs.ingest.options import IngestOptions
from beam_jobs.ingest.preview import preview
from beam_jobs.run.engines import HERE
from vista.data.logs.reading import load
from vista.data.tables.reading import read_bucket, read_impressions
from vista.data.tables.rows import IMPRESSIONS
from vista.data.tables.warehouse import Warehouse

T0 = 1_650_637_245_000
ORDER = 946_684_800_000


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)


KUAI = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


def kuairand(folder: Path) -> list[str]:
    row = "0,{},20220422,2200,{},{},{},0,0,0,{},{},27890,18000,0,0,0,0,1\n".format
    text = KUAI + row(7, T0, 1, 1, 0, 1) + row(8, T0, 0, 0, 0, 0) + row(9, T0 + 5, 0, 0, 1, 0)
    (folder / "log_standard_4_08_to_4_21_1k.csv").write_text(text)
    return ["log_standard_4_08_to_4_21_1k.csv"]


YAMBDA = {"uid": pa.uint32(), "timestamp": pa.uint32(), "item_id": pa.uint32(), "is_organic": pa.uint8()}


def yambda(folder: Path, event: bool = True) -> list[str]:
    columns = {"uid": [100, 100, 100], "timestamp": [0, 5, 5], "item_id": [1, 2, 2], "is_organic": [1, 0, 0]}
    table = pa.table({n: pa.array(v, YAMBDA[n]) for n, v in columns.items()})
    table = table.append_column("played_ratio_pct", pa.array([100, None, 5], pa.uint16()))
    if event:
        events = pa.array(["listen", "listen", "like"]).dictionary_encode()
        table = table.append_column("event_type", events)
    pq.write_table(table, folder / "multi_event.parquet")
    return ["multi_event.parquet"]


def yambda_sequential(folder: Path) -> list[str]:
    table = pa.table(
        {
            "uid": pa.array([100, 101], pa.uint32()),
            "timestamp": pa.array([[0, 5], [10]], pa.list_(pa.uint32())),
            "item_id": pa.array([[1, 2], [3]], pa.list_(pa.uint32())),
            "is_organic": pa.array([[1, 0], [1]], pa.list_(pa.uint8())),
            "event_type": pa.array([["listen", "like"], ["listen"]]),
        }
    )
    pq.write_table(table, folder / "sequential.parquet")
    return ["sequential.parquet"]


def vk_lsvd(folder: Path) -> list[str]:
    flags = ("like", "dislike", "share", "bookmark", "click_on_author", "open_comments")
    for week, items in (("train/week_00", [1, 2]), ("train/week_10", [4]), ("validation/week_25", [3])):
        n = len(items)
        columns = {
            "user_id": pa.array([5] * n, pa.uint32()),
            "item_id": pa.array(items, pa.uint32()),
            "place": pa.array([1] * n, pa.uint8()),
            "timespent": pa.array([9, 0][:n], pa.uint8()),
            **{f: pa.array([f == "like"] + [False] * (n - 1)) for f in flags},
        }
        (folder / week).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{week}.parquet")
    return ["train", "validation"]


def t_ecd(folder: Path) -> list[str]:
    (folder / "events").mkdir()
    table = pa.table(
        {
            "timestamp": pa.array([timedelta(days=1), timedelta(days=1, seconds=2)], pa.duration("us")),
            "user_id": pa.array([1, 2], pa.uint64()),
            "item_id": pa.array(["a", "b"]),
            "subdomain": pa.array(["catalog", "search"]),
            "action_type": pa.array(["view", "click"]),
            "price": pa.array([1.5, None]),
        }
    )
    pq.write_table(table, folder / "events" / "00001.pq")
    return ["events"]


def merrec(folder: Path) -> list[str]:
    (folder / "20230501").mkdir()
    table = pa.table(
        {
            "user_id": pa.array([1, 1]),
            "session_id": pa.array([7, 7]),
            "event_id": pa.array(["item_view", "buy_comp"]),
            "stime": pa.array(["2023-05-01 10:00:00", "2023-05-01 10:00:05.250000"]),
            "item_id": pa.array([5, 5]),
        }
    )
    pq.write_table(table, folder / "20230501" / "000000000000.parquet")
    return ["20230501"]


def amazon_csv(folder: Path) -> list[str]:
    (folder / "All.csv").write_text(
        f"user_id,parent_asin,rating,timestamp\nAE2,B01,5.0,{T0}\nAE2,B02,3.0,{T0}\nAE3,B01,1.0,{T0}\n"
    )
    return ["All.csv"]


def amazon_jsonl(folder: Path) -> list[str]:
    row = {"rating": 5.0, "title": "ok", "images": [], "asin": "B0", "parent_asin": "B01", "user_id": "AE2"}
    rows = [{**row, "timestamp": T0}, {**row, "rating": 1.0, "user_id": "AE3", "timestamp": T0}]
    rows.insert(1, {**row, "rating": 3.0, "parent_asin": "B02", "timestamp": T0})
    (folder / "Beauty.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return ["Beauty.jsonl"]


def movielens(folder: Path) -> list[str]:
    (folder / "ratings.csv").write_text(
        f"userId,movieId,rating,timestamp\n1,17,4.0,{T0 // 1000}\n1,25,0.5,{T0 // 1000}\n2,17,3.0,{T0 // 1000}\n"
    )
    return ["ratings.csv"]


def movielens_parquet(folder: Path) -> list[str]:
    table = pa.table(
        {
            "userId": pa.array([1, 1, 2], pa.int32()),
            "movieId": pa.array([17, 25, 17]),
            "rating": pa.array([4.0, 0.5, 3.0]),
            "timestamp": pa.array([T0 // 1000] * 3),
        }
    )
    pq.write_table(table, folder / "ratings.parquet")
    return ["ratings.parquet"]


def taobao(folder: Path) -> list[str]:
    (folder / "UserBehavior.csv").write_text(
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,buy,1511561733\n"
    )
    return ["UserBehavior.csv"]


def lastfm(folder: Path) -> list[str]:
    row = "user_000001\t2009-05-04T23:08:57Z\tf1b1\tDeep Dish\t\t{}\n".format
    other = 'user_000002\t2009-05-05T00:00:00Z\tf1b1\t"Weird Al" Yankovic\tx\tFat\n'
    name = "userid-timestamp-artid-artname-traid-traname.tsv"
    (folder / name).write_text(row('"Heroes" (Live') + row("Fuck Me Im Famous (Pacha Ibiza)") + other)
    return [name]


def retailrocket(folder: Path) -> list[str]:
    (folder / "events.csv").write_text(
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433222276276,257597,transaction,15335,4000\n"
    )
    return ["events.csv"]


def otto(folder: Path) -> list[str]:
    events = [{"aid": 1, "ts": T0, "type": "clicks"}, {"aid": 2, "ts": T0 + 7, "type": "carts"}]
    (folder / "train.jsonl").write_text(json.dumps({"session": 3, "events": events}) + "\n")
    return ["train.jsonl"]


def ebnerd(folder: Path) -> list[str]:
    table = pa.table(
        {
            "impression_id": pa.array([48401, 48402], pa.uint32()),
            "article_id": pa.array([None, None], pa.int32()),
            "impression_time": pa.array([datetime(2023, 5, 21, 21, 6, 50)] * 2, pa.timestamp("us")),
            "article_ids_inview": pa.array([[1, 2, 3], [4]], pa.list_(pa.int32())),
            "article_ids_clicked": pa.array([[2], []], pa.list_(pa.int32())),
            "user_id": pa.array([22779, 22779], pa.uint32()),
        }
    )
    pq.write_table(table, folder / "behaviors.parquet")
    return ["behaviors.parquet"]


def ebnerd_history(folder: Path) -> list[str]:
    table = pa.table(
        {
            "user_id": pa.array([13538], pa.uint32()),
            "impression_time_fixed": pa.array([[datetime(2023, 4, 27), datetime(2023, 4, 28)]]),
            "read_time_fixed": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
            "article_id_fixed": pa.array([[9738663, 9738569]], pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, folder / "history.parquet")
    return ["history.parquet"]


def mind(folder: Path) -> list[str]:
    (folder / "behaviors.tsv").write_text(
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
    )
    return ["behaviors.tsv"]


def netflix(folder: Path) -> list[str]:
    (folder / "combined_data_1.txt").write_text(
        "1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n2:\n822109,1,2005-10-19\n"
    )
    return ["combined_data_1.txt"]


def recbole(folder: Path) -> list[str]:
    (folder / "ml.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t242\t3\t881250949\n196\t302\t5\t891717742.0\n"
    )
    return ["ml.inter"]


WHEN = ms(2019, 11, 11, 9, 5, 58)
Event = tuple[object, object, str, int]
SLATE = [(22779, i, "click" if i == 2 else "", ms(2023, 5, 21, 21, 6, 50)) for i in (1, 2, 3, 4)]
RATED = [(1, 17, "liked", T0), (1, 25, "disliked", T0), (2, 17, "", T0)]
REVIEWS = [("AE2", "B01", "liked", T0), ("AE2", "B02", "", T0), ("AE3", "B01", "disliked", T0)]
SETS: dict[str, tuple[Callable[[Path], list[str]], list[Event], list[Event] | None]] = {
    "kuairand": (
        kuairand,
        [(0, 7, "click+like+long_view", T0), (0, 9, "hate", T0 + 5)],
        [(0, 7, "click+like+long_view", T0), (0, 8, "", T0), (0, 9, "hate", T0 + 5)],
    ),
    "yambda": (
        yambda,
        [(100, 1, "listen", ORDER), (100, 2, "like", ORDER + 5_000), (100, 2, "listen", ORDER + 5_000)],
        None,
    ),
    "yambda-listens": (
        lambda folder: yambda(folder, event=False),
        [(100, 1, "listen", ORDER), (100, 2, "listen", ORDER + 5_000)],
        None,
    ),
    "yambda-sequential": (
        yambda_sequential,
        [(100, 1, "listen", ORDER), (100, 2, "like", ORDER + 5_000), (101, 3, "listen", ORDER + 10_000)],
        None,
    ),
    "vk-lsvd": (
        vk_lsvd,
        [(5, 1, "view+like", ORDER), (5, 3, "view+like", ORDER + 3), (5, 4, "view+like", ORDER + 2)],
        [(5, 1, "view+like", ORDER), (5, 2, "", ORDER + 1), (5, 3, "view+like", ORDER + 3)]
        + [(5, 4, "view+like", ORDER + 2)],
    ),
    "t-ecd": (
        t_ecd,
        [(1, "a", "view", ms(2000, 1, 2)), (2, "b", "click", ms(2000, 1, 2, 0, 0, 2))],
        None,
    ),
    "merrec": (
        merrec,
        [(1, 5, "buy_comp", ms(2023, 5, 1, 10, 0, 5) + 250), (1, 5, "item_view", ms(2023, 5, 1, 10))],
        None,
    ),
    "amazon-reviews-2023": (amazon_csv, REVIEWS, None),
    "amazon-reviews-2023 jsonl": (amazon_jsonl, REVIEWS, None),
    "movielens": (movielens, RATED, None),
    "movielens parquet": (movielens_parquet, RATED, None),
    "taobao": (taobao, [(1, 2268318, "pv", 1511544070000), (1, 2333346, "buy", 1511561733000)], None),
    "lastfm-1k": (
        lastfm,
        [
            ("user_000001", '"Heroes" (Live', "listen", ms(2009, 5, 4, 23, 8, 57)),
            ("user_000001", "Fuck Me Im Famous (Pacha Ibiza)", "listen", ms(2009, 5, 4, 23, 8, 57)),
            ("user_000002", "Fat", "listen", ms(2009, 5, 5)),
        ],
        None,
    ),
    "retailrocket": (
        retailrocket,
        [(257597, 15335, "transaction", 1433222276276), (257597, 355908, "view", 1433221332117)],
        None,
    ),
    "otto": (otto, [(3, 1, "clicks", T0), (3, 2, "carts", T0 + 7)], None),
    "ebnerd": (ebnerd, [SLATE[1]], SLATE),
    "ebnerd-history": (
        ebnerd_history,
        [(13538, 9738569, "read", ms(2023, 4, 28)), (13538, 9738663, "read", ms(2023, 4, 27))],
        None,
    ),
    "mind": (
        mind,
        [("U13740", "N55689", "click", WHEN)],
        [("U13740", "N35729", "", WHEN), ("U13740", "N55689", "click", WHEN)],
    ),
    "netflix-prize": (
        netflix,
        [(822109, 1, "liked", ms(2005, 5, 13)), (822109, 2, "disliked", ms(2005, 10, 19))]
        + [(1488844, 1, "", ms(2005, 9, 6))],
        None,
    ),
    "recbole": (recbole, [(196, 242, "", 881250949000), (196, 302, "liked", 891717742000)], None),
}  # fmt: skip


def options(folder: Path, files: list[str], layout: str, **more) -> IngestOptions:
    return IngestOptions(
        tuple(str(folder / f) for f in files),
        str(folder / "home"),
        str(folder / "run"),
        log=load(layout),
        num_buckets=2,
        min_time_ms=0,
        **more,
    )


def rows(tables: Warehouse, shown: bool) -> list[Event]:
    """(user, item by name or id, its actions, time) of the history, or of the impressions."""
    items = tables.read_items()
    names = {i: n for i, n in zip(items.item.tolist(), items.name.tolist(), strict=True) if n is not None}
    found = []
    buckets = tables.bucket_files(kind=IMPRESSIONS) if shown else tables.bucket_files()
    for files in buckets.values():
        read = read_impressions(files, max_rows=1 << 20) if shown else read_bucket(files, max_rows=1 << 20)
        for batch in read:
            events = batch if shown else batch.events
            user = np.repeat(batch.users, np.diff(events.offsets)).tolist()
            columns = [getattr(events, n).tolist() for n in ("item", "action", "time")]
            for u, item, mask, time in zip(user, *columns, strict=True):
                did = "+".join(a for k, a in enumerate(tables.actions) if mask >> k & 1)
                found.append((u, names.get(item, item), did, time))
    return sorted(found, key=lambda row: (row[0], str(row[1]), row[2]))


@pytest.mark.parametrize("name", SETS)
def test_a_file_in_the_layout_of_a_set_becomes_its_events_and_a_dry_run_tells_them(tmp_path, name):
    make, events, shown = SETS[name]
    asked = options(tmp_path, make(tmp_path), name.split()[0])
    look = preview(asked)[0]
    assert not look.letters and len(look.events) == min(10, look.rows) and not (tmp_path / "home").exists()
    record = ingest.run(asked, (HERE,))
    assert record.exit_code == 0, record.counts
    tables = Warehouse(tmp_path / "home").open()
    assert rows(tables, shown=False) == sorted(events, key=lambda row: (row[0], str(row[1]), row[2]))
    if shown is not None:
        assert rows(tables, shown=True) == sorted(shown, key=lambda row: (row[0], str(row[1]), row[2]))
        assert record.counts["unengaged"] == len(shown) - len(events)
