"""Further public sets: a small file in the exact form of each, as the dry run reads it; what `vista init` guesses of
odd files; and docs/layouts.md, which shows the dry run of every layout (this file, run as a program, writes it)."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_ingest_layouts import SETS

from beam_jobs.ingest.options import IngestOptions
from beam_jobs.ingest.preview import Look, look_first, preview
from tools.cli import main
from vista.data.logs.reading import Reading, layouts, load
from vista.errors import DataError

DOCS = Path(__file__).parents[3] / "docs" / "layouts.md"


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


PLAYLIST = {
    "name": "Throwbacks",
    "pid": 7,
    "modified_at": 1493424000,
    "tracks": [
        {"pos": 0, "track_uri": "spotify:track:0Ua", "track_name": "Lose"},
        {"pos": 1, "track_uri": "spotify:track:6I9"},
    ],
}
FILES: dict[str, tuple[str, str, list[str]]] = {
    "movielens-1m": ("ratings.dat", "1::1193::5::978300760\n1::661::2::978302109\n",
                     ["1 1193 liked 2000-12-31T22:12:40.000", "1 661 disliked 2000-12-31T22:35:09.000"]),
    "movielens-1m 100k": ("u.data", "196\t242\t3\t881250949\n", ["196 242 - 1997-12-04T15:55:49.000"]),
    "amazon-reviews-2014": ("ratings_Books.csv", "A2IIIDRK3PRRZY,0000000116,1.0,1395619200\n",
                            ["A2IIIDRK3PRRZY 0000000116 disliked 2014-03-24T00:00:00.000"]),
    "amazon-reviews-2018": ("Books_5.json", lines({"overall": 5.0, "reviewerID": "A1", "asin": "00002",
                            "style": {"F": "K"}, "unixReviewTime": 1413763200}),
                            ["A1 00002 liked 2014-10-20T00:00:00.000"]),
    "yelp": ("yelp_academic_dataset_review.json", lines({"review_id": "KU", "user_id": "mh", "business_id": "XQ",
             "stars": 3.0, "text": "a\nb", "date": "2018-07-07 22:09:11"}), ["mh XQ - 2018-07-07T22:09:11.000"]),
    "goodreads": ("goodreads_interactions_dedup.json", lines({"user_id": "88", "book_id": "24", "is_read": True,
                  "rating": 5, "date_added": "Fri Aug 25 13:55:02 -0700 2017", "read_at": ""}),
                  ["88 24 read+liked 2017-08-25T20:55:02.000"]),
    "steam-reviews": ("steam_reviews.json", "{u'username': u'Chaos Syren', u'hours': 0.1, u'product_id': u'725280', "
                      "u'date': u'2017-12-17', u'text': u\"it's\", u'early_access': False}\n",
                      ["Chaos Syren 725280 review 2017-12-17T00:00:00.000"]),
    "hm": ("transactions_train.csv", "t_dat,customer_id,article_id,price,sales_channel_id\n"
           "2018-09-20,000058a1,0663713001,0.0508,2\n", ["000058a1 0663713001 buy 2018-09-20T00:00:00.000"]),
    "ta-feng": ("ta_feng_all_months_merged.csv", "TRANSACTION_DT,CUSTOMER_ID,AGE_GROUP,PRODUCT_ID\n"
                "11/1/2000,1104905,45-49,4710199010372\n", ["1104905 4710199010372 buy 2000-11-01T00:00:00.000"]),
    "diginetica": ("train-item-views.csv", "sessionId;userId;itemId;timeframe;eventdate\n"
                   "1;NA;81766;526309;2016-05-09\n",
                   ["1 81766 view 2016-05-09T00:00:00.000"]),
    "yoochoose": ("yoochoose-clicks.dat", "1,2014-04-07T10:51:09.277Z,214536502,0\n"
                  "1,2014-04-07T10:54:09.868Z,21453,S\n",
                  ["1 214536502 click 2014-04-07T10:51:09.277", "1 21453 click 2014-04-07T10:54:09.868"]),
    "lfm-1b": ("LFM-1b_LEs.txt", "31435736\t2\t4\t4\t1385212958\n", ["31435736 4 listen 2013-11-23T13:22:38.000"]),
    "lfm-2b": ("listening_events.tsv", "user_id\ttrack_id\talbum_id\ttimestamp\n31435\t53\t23\t2019-11-02 14:05:39\n",
               ["31435 53 listen 2019-11-02T14:05:39.000"]),
    "gowalla": ("loc-gowalla_totalCheckins.txt", "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847\n",
                ["0 22847 checkin 2010-10-19T23:55:27.000"]),
    "foursquare": ("dataset_TSMC2014_NYC.txt", "470\t49bbd6\t4bf58d\tArts & Crafts Store\t40.71\t-74.0\t-240\t"
                   "Tue Apr 03 18:00:09 +0000 2012\n", ["470 49bbd6 checkin 2012-04-03T18:00:09.000"]),
    "twitch": ("100k_a.csv", "1,34347669376,grimnax,5415,5419\n", ["1 grimnax watch 2019-07-01T01:30:15.000"]),
    "alimama": ("raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk\n581738,1494137644,1,430548_1007,1,0\n"
                "449818,1494638778,3,430548_1007,0,1\n",
                ["581738 1 - 2017-05-07T06:14:04.000", "449818 3 click 2017-05-13T01:26:18.000"]),
    "criteo-attribution": ("criteo.tsv", "timestamp\tuid\tcampaign\tconversion\tconversion_timestamp\tclick\n"
                           "0\t20073966\t22589171\t0\t-1\t0\n2\t24607497\t884761\t1\t5000\t1\n",
                           ["20073966 22589171 - 2000-01-01T00:00:00.000",
                            "24607497 884761 click+conversion 2000-01-01T00:00:02.000"]),
    "million-playlist": ("mpd.slice.0-999.json", 
                         json.dumps({"info": {"version": "v1"}, "playlists": [PLAYLIST]}, indent=4),
                         ["7 spotify:track:0Ua add 2017-04-29T00:00:00.000",
                          "7 spotify:track:6I9 add 2017-04-29T00:00:00.000"]),
    "trivago": ("train.csv", "user_id,session_id,timestamp,step,action_type,reference,platform,impressions\n"
                "00RL,aff,1541037522,2,interaction item image,666856,AU,\n"
                "00RL,aff,1541038000,3,clickout item,666856,AU,666856|5001\n",
                ["00RL 666856 interaction item image 2018-11-01T01:58:42.000",
                                  "00RL 666856 clickout item 2018-11-01T02:06:40.000"]),
    "xing-2016": ("interactions.csv", "user_id\titem_id\tinteraction_type\tcreated_at\n1\t2\t1\t1442566800\n"
                  "1\t3\t4\t1442567800\n", ["1 2 click 2015-09-18T09:00:00.000", "1 3 delete 2015-09-18T09:16:40.000"]),
    "outbrain": ("page_views_sample.csv", "uuid,document_id,timestamp,platform,geo_location,traffic_source\n"
                 "1fd5f051fba643,120,31905835,1,RS,2\n", ["1fd5f051fba643 120 view 2016-06-14T08:51:45.835"]),
    "rees46": ("2019-Oct.csv", "event_time,event_type,product_id,category_code,price,user_id,user_session\n"
               "2019-10-01 00:00:00 UTC,view,44600062,,35.79,541312140,72d\n",
               ["541312140 44600062 view 2019-10-01T00:00:00.000"]),
    "kuairec": ("big_matrix.csv", "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
                "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.273397\n",
                ["0 3649 watched 2020-07-04T16:08:23.438"]),
    "microlens": ("MicroLens-100k_pairs.csv", "user,item,timestamp\n36121,9580,1583378629552\n",
                  ["36121 9580 comment 2020-03-05T03:23:49.552"]),
    "tenrec": ("sbr_data_1M.csv", "user_id,item_id,click,follow,like,share,video_category\n"
               "0,1,1,0,1,0,1\n0,2,0,0,0,0,1\n",
               ["0 1 click+like 2000-01-01T00:00:00.000", "0 2 - 2000-01-01T00:00:00.001"]),
    "adressa": ("20170101.jsonl", lines({"documentId": "ab", "userId": "cx:1", "eventId": 1, "time": 1483225200}),
                ["cx:1 ab read 2016-12-31T23:00:00.000"]),
}  # fmt: skip


def look(folder: Path, files: list[str], reading: Reading) -> Look:
    asked = IngestOptions(
        tuple(str(folder / f) for f in files),
        str(folder / "home"),
        str(folder / "run"),
        log=reading,
        min_time_ms=0,
    )
    shown = dataclasses.replace(asked, log=dataclasses.replace(reading, weights={}))
    return preview(shown)[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_further_set_is_read_by_its_layout(tmp_path, name):
    file, text, events = FILES[name]
    (tmp_path / file).write_text(text)
    found = look(tmp_path, [file], load(name.split()[0]))
    assert [" ".join(row[:4]) for row in found.events] == events and not found.letters


ODD: dict[str, tuple[str, str | pa.Table, dict, tuple[str, ...]]] = {
    "no header": ("a.csv", "u7,B1,4.5,1395619200\nu8,B2,1.0,1395619300\n",
                  {"header": ["user_id", "item_id", "rating", "timestamp_ms"], "time_unit": "s"}, ()),
    "no header, actions": ("a.dat", "7|2019-01-02 03:04:05|buy|55\n8|2019-01-02 03:04:06|view|56\n",
                           {"header": ["user_id", "timestamp_ms", "action", "item_id"]}, ()),
    "nested": ("a.jsonl", lines({"user": {"id": "u1", "geo": {"c": "US"}}, "item": {"sku": "a"}, "event_type": "view",
               "meta": {"ts": 1700000000000}}),
               {"columns": {"user_id": "user.id", "item_id": "item.sku", "timestamp_ms": "meta.ts",
                            "action": "event_type"}}, ()),
    "structs": ("a.parquet", pa.table({"user": [{"id": 1}], "item": [{"sku": "a"}], "meta": [{"ts": 1700000000000}]}),
                {"columns": {"user_id": "user.id", "item_id": "item.sku", "timestamp_ms": "meta.ts"},
                 "action_is": "view"}, ()),
    "a list of events": ("a.json", json.dumps([{"visitor": 1, "customer_id": 5, "created_at": 1700000000,
                         "items": [{"sku": "a"}, {"sku": "b"}]}]),
                         {"columns": {"user_id": "customer_id", "item_id": "sku", "timestamp_ms": "created_at"},
                          "explode": ["items"], "time_unit": "s", "action_is": "view"}, ()),
    "sessions": ("a.csv", "sessionId;userId;itemId;eventdate\n1;NA;81766;2016-05-09\n2;5;1;2016-05-10\n",
                 {"columns": {"user_id": "sessionId", "item_id": "itemId", "timestamp_ms": "eventdate"}}, ()),
    "ids that look like huge numbers, and categories": (
        "a.txt", "".join(f"7\t{n}e{n}00\tPlace no {n}\t2019-01-02 03:04:{n}\n" for n in range(10, 40)),
        {"header": ["user_id", "item_id", "-", "timestamp_ms"], "action_is": "view"}, ()),
    "actions by number": ("a.csv", "user_id,item_id,time_stamp,action_type\n1,2,1700000000,0\n1,3,1700000001,2\n",
                          {"columns": {"timestamp_ms": "time_stamp", "action": "action_type"}, "time_unit": "s"}, ()),
    "a feed with ids of its own rows": (
        "a.json", lines(*({"id": f"{n}", "type": "Push", "actor": {"id": n % 3}, "repo": {"id": n % 5},
                           "payload": {"action": "opened"} if n % 4 else {}, "created_at": f"2022-01-01T00:00:{n}Z"}
                          for n in range(10, 40))),
        {"columns": {"user_id": "actor.id", "item_id": "repo.id", "timestamp_ms": "created_at", "action": "type"}}, ()),
    "ids of rows and of nobody": ("a.csv", "id,reader_id,opened_at\n1,5,2022-01-01\n2,5,2022-01-02\n",
                                  {"columns": {"user_id": "reader_id", "timestamp_ms": "opened_at"}}, ("item_id",)),
    "people shown to people": ("a.csv", "UserID,ProfileID,Rating,Time\n1,133,8,1700000000\n1,720,6,1700000001\n",
                               {"columns": {"user_id": "UserID", "item_id": "ProfileID", "timestamp_ms": "Time"}}, ()),
    "two times": ("a.csv", "user_id,session_start,click_article_id,click_timestamp\n5,1506826800026,7,1506827017951\n",
                  {"columns": {"item_id": "click_article_id", "timestamp_ms": "click_timestamp"}}, ()),
    "a spreadsheet's minutes": (
        "a.csv", "InvoiceNo,StockCode,Quantity,InvoiceDate,CustomerID\n536365,85123A,6,12/1/2010 8:26,17850\n",
        {"columns": {"user_id": "CustomerID", "item_id": "StockCode", "timestamp_ms": "InvoiceDate"},
         "time_format": "%m/%d/%Y %H:%M"}, ()),
    "lines of JSON without an ending": ("20170101", lines({"userId": "u", "documentId": "d", "time": 1483225200}),
                                        {"columns": {"user_id": "userId", "item_id": "documentId",
                                                     "timestamp_ms": "time"}}, ()),
    "text as Hadoop names it": ("part-00000", "u7\ti1\t1395619200\nu8\ti2\t1395619300\n",
                                {"header": ["user_id", "item_id", "timestamp_ms"], "time_unit": "s"}, ()),
    "Parquet as Hive names it": ("000000_0", pa.table({"user_id": [1], "item_id": [2], "timestamp_ms": [17 * 10**11]}),
                                 {}, ()),
    "no times": ("a.csv", '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"5"\n',
                 {"columns": {"user_id": "User-ID", "item_id": "ISBN"}}, ("timestamp_ms",)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_guessed_of_an_odd_file_reads_it(tmp_path, name):
    file, content, expected, missing = ODD[name]
    if isinstance(content, str):
        (tmp_path / file).write_text(content)
    else:
        pq.write_table(content, tmp_path / file)
    found = look_first([str(tmp_path / file)])[0].guess
    said = found.reading.to_json()
    assert {k: said.get(k) for k in expected} == expected and found.missing == missing
    if not missing:
        shown = look(tmp_path, [file], found.reading)
        assert shown.events and not shown.letters


@pytest.mark.parametrize("name", ["movielens-1m", "steam-reviews", "goodreads"])
def test_what_init_writes_is_what_the_next_ingest_reads(tmp_path, capsys, name):
    file, text, events = FILES[name]
    (tmp_path / file).write_text(text)
    for words in (["init", tmp_path / file], ["ingest", tmp_path / file, "--buckets", 1, "--json"]):
        with pytest.raises(SystemExit) as done:
            main([*map(str, words), "--home", str(tmp_path / "home")])
        assert not done.value.code
        said = capsys.readouterr().out
    assert json.loads(said.splitlines()[-1])["counts"]["events_read"] == len(events)


def test_a_folder_without_other_logs_is_read_whatever_its_text_files_are_called(tmp_path):
    file, text, events = FILES["goodreads"]
    (tmp_path / file).write_text(text)
    assert look_first([str(tmp_path)])[0].logs == (str(tmp_path),)
    assert len(look(tmp_path, ["."], load("goodreads")).events) == len(events)
    (tmp_path / "items.csv").write_text("item_id,title\n1,a\n")
    kind, others = look_first([str(tmp_path)])  # beside other logs text may be anything, events too
    assert kind.logs == (str(tmp_path / file),) and [o.logs for o in others] == [
        (str(tmp_path / "items.csv"),)
    ]
    (tmp_path / "README").write_text("1 2 3")
    (tmp_path / "items.csv").rename(tmp_path / "cover.png")
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match="found only .*cover.png"):
        look_first([str(tmp_path)])


def shown(found: Look) -> list[str]:
    """A dry run as docs/layouts.md has it."""
    rows = [("meaning", "column", "type", "read as"), *found.columns]
    events = [found.names, *found.events[:3]]
    out = []
    for table in (rows, events):
        widths = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))]
        out += [
            "    " + "  ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        out.append("")
    return out


INTRODUCTION = """# Layouts

What `vista ingest FILES --layout NAME --dry-run` says of a small file in the form of each set: columns, how each is
read, and the first rows as events. Made from the files of the tests, and held to them; none of the sets was at hand.
"""


def documented(folder: Path) -> str:
    known = layouts()
    told = [INTRODUCTION]
    for name in known:
        below = folder / name
        below.mkdir()
        if name in SETS:
            files = SETS[name][0](below)
        else:
            (below / FILES[name][0]).write_text(FILES[name][1])
            files = [FILES[name][0]]
        told += [f"## {name}", "", f"{known[name].about}.", "", *shown(look(below, files, known[name]))]
    return "\n".join(told).rstrip() + "\n"


def test_every_layout_is_shown_in_the_docs_as_the_dry_run_reads_it(tmp_path):
    assert DOCS.read_text() == documented(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        DOCS.write_text(documented(Path(scratch)))
