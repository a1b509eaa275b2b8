"""``vista follow --deliver``: a store elsewhere, fed by a sink, says what ours says; whatever dies on the way."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_follow import Listed, follow, message

from beam_jobs.errors import OptionsError, SinkLost
from beam_jobs.follow.delivery import Delivery
from beam_jobs.follow.service import FollowOptions
from beam_jobs.follow.sinks import open_sink
from cache_store import Status, Store

USERS = np.arange(7)
EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "receive_summaries.py"


class Kept:
    """A sink in memory that fails when it is told to."""

    def __init__(self):
        self.records: dict[str, bytes | None] = {}
        self.headers: list = []
        self.sent = 0
        self.fail = self.fail_late = False

    def send(self, header, users, records):
        if self.fail:
            raise SinkLost("the sink is away")
        self.headers.append(header)
        self.records.update(zip(users, records, strict=True))
        self.sent += len(users)

    def flush(self):
        if self.fail_late:
            raise SinkLost("the sink did not take all of it")


def held(store: Store) -> dict[str, bytes]:
    """Record bytes by user, as stored."""
    return {
        str(user): row.tobytes()
        for block in store.changes()
        for user, row in zip(block.users.tolist(), block.rows, strict=True)
    }


def test_every_changed_record_arrives_and_no_other(options: FollowOptions, tmp_path):
    sink, source = Kept(), Listed([message(n) for n in range(40)])
    follow(options, source, 1)
    store = Store.open(options.store)
    delivery = Delivery(sink, "kept://", store, tmp_path)
    assert delivery.advance() == 7 and sink.records == held(store)
    assert delivery.advance() == 0
    source.messages += [message(n) for n in (42, 49, 56)]  # of user 0
    follow(options, source, 1)
    assert delivery.advance() == 1 and sink.sent == 8 and sink.records == held(store)
    header = sink.headers[-1]
    assert (header.generation, header.fingerprint) == (store.manifest.generation, store.manifest.fingerprint)
    assert json.loads(header.fields()["schema"]) == store.manifest.schema.as_dict()


def test_what_a_sink_did_not_take_is_sent_when_it_is_back(options: FollowOptions, tmp_path):
    sink, source = Kept(), Listed([message(n) for n in range(40)])
    follow(options, source, 1)
    store = Store.open(options.store)
    Delivery(sink, "kept://", store, tmp_path).advance()
    sink.fail = True
    source.messages += [message(n) for n in range(40, 80)]
    follow(options, source, 1)
    with pytest.raises(SinkLost):
        Delivery(sink, "kept://", store, tmp_path).advance()
    sink.fail = False
    assert Delivery(sink, "kept://", store, tmp_path).advance() == 7  # another process, the same position
    assert sink.records == held(store)


def test_what_was_sent_and_did_not_arrive_is_sent_again(options: FollowOptions, tmp_path):
    sink = Kept()
    follow(options, Listed([message(n) for n in range(40)]), 1)
    delivery = Delivery(sink, "kept://", Store.open(options.store), tmp_path)
    sink.fail_late = True
    with pytest.raises(SinkLost):
        delivery.advance()
    sink.fail_late = False
    assert delivery.delivered is None and delivery.advance() == 7


def test_where_the_last_delivered_generation_is_gone_everything_is_sent(options: FollowOptions, tmp_path):
    sink, source = Kept(), Listed([message(n) for n in range(200)])
    follow(options, source, 1)
    store = Store.open(options.store)
    Delivery(sink, "kept://", store, tmp_path).advance()
    follow(options, source, 4)
    store.compact()
    store.prune(1, staging_ms=0)
    assert Delivery(sink, "kept://", store, tmp_path).advance() == 7 and sink.records == held(store)


def test_a_store_elsewhere_fed_by_a_stream_says_what_ours_says(
    options: FollowOptions, redis_server, tmp_path
):
    client, url = redis_server
    spec = importlib.util.spec_from_file_location("receive_summaries", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.WAIT_MS = 1
    sink = url.partition("?")[0] + "?stream=summaries"
    source = Listed([message(n) for n in range(240)])
    delivering = dataclasses.replace(options, deliver=(sink,))
    theirs = tmp_path / "theirs"
    for turns in (1, 2, 3):
        told = follow(delivering, source, turns)
        assert all(turn.counts["delivered"] == 7 for turn in told)
        assert example.receive(client, "summaries", theirs)
        ours, other = (Store.open(path).lookup(USERS) for path in (options.store, theirs))
        assert (ours.status == Status.FRESH).all() and (other.status == Status.FRESH).all()
        np.testing.assert_array_equal(ours.tokens, other.tokens)
        np.testing.assert_array_equal(ours.last_event_ms, other.last_event_ms)
    assert example.receive(client, "summaries", theirs) is None
    assert Store.open(theirs).manifest.kind == "delta"


def test_a_key_a_user_in_redis_holds_the_record_as_stored(options: FollowOptions, redis_server):
    client, url = redis_server
    sink = url.partition("?")[0] + "?prefix=summaries"
    follow(dataclasses.replace(options, deliver=(sink,)), Listed([message(n) for n in range(40)]), 1)
    store = Store.open(options.store)
    assert {u: client.get(f"summaries:{u}") for u in held(store)} == held(store)
    header = client.hgetall("summaries")
    assert header[b"fingerprint"].decode() == store.manifest.fingerprint
    open_sink(sink).send(_header(store), ["3"], [None])
    assert client.get("summaries:3") is None


def _header(store: Store):
    from beam_jobs.follow.sinks import Header

    m = store.manifest
    return Header(store.line, m.generation, m.fingerprint, m.schema.as_dict(), m.watermark_ms)


def test_a_topic_holds_the_last_record_of_every_user_under_its_key(options: FollowOptions):
    kafka = pytest.importorskip("confluent_kafka")
    cluster = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored"})
    broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
    at = f"{broker.host}:{broker.port}"
    delivering = dataclasses.replace(options, deliver=(f"kafka://{at}/summaries",))
    told = follow(delivering, Listed([message(n) for n in range(80)]), 2)
    count = sum(turn.counts["delivered"] for turn in told)
    consumer = kafka.Consumer({"bootstrap.servers": at, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe(["summaries"])
    found: dict[str, bytes] = {}
    for _ in range(300):  # of a tenth of a second
        if count == 0:
            break
        if (got := consumer.poll(0.1)) is not None and not got.error():
            count -= 1
            found[got.key().decode()] = got.value()
            headers = dict(got.headers())
    consumer.close()
    store = Store.open(options.store)
    assert count == 0 and found == held(store)
    assert headers["fingerprint"].decode() == store.manifest.fingerprint


def test_a_server_of_arrow_flight_gets_users_and_records_as_columns(options: FollowOptions):
    flight = pytest.importorskip("pyarrow.flight")
    taken: dict[str, bytes] = {}
    metadata: dict = {}

    class Server(flight.FlightServerBase):
        def do_put(self, context, descriptor, reader, writer):
            assert descriptor.path == [b"summaries"]
            table = reader.read_all()
            metadata.update(table.schema.metadata)
            taken.update(zip(table["user"].to_pylist(), table["record"].to_pylist(), strict=True))
            writer.write(pa.py_buffer(b"taken"))

    with Server("grpc://127.0.0.1:0") as server:
        threading.Thread(target=server.serve, daemon=True).start()
        sink = f"flight://127.0.0.1:{server.port}/summaries"
        follow(dataclasses.replace(options, deliver=(sink,)), Listed([message(n) for n in range(40)]), 1)
        server.shutdown()
    store = Store.open(options.store)
    assert taken == held(store)
    assert metadata[b"generation"].decode() == store.manifest.generation


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost?stream=a&prefix=b",
        "redis://localhost?stream=a&maxlen=x",
        "redis://localhost?stream=a&more=1",
        "kafka://localhost:9092",
        "kafka://localhost:9092/a/b",
        "flight://localhost/a",
        "flight://localhost:1",
        "https://localhost/a",
        "somewhere",
    ],
)
def test_a_sink_that_cannot_be_is_told_with_one_that_can(url):
    with pytest.raises(OptionsError, match="for example|redis://HOST"):
        open_sink(url)


def test_a_sink_that_is_away_ends_the_service_and_no_password_is_told(options: FollowOptions):
    pytest.importorskip("redis")
    away = "redis://me:hush@127.0.0.1:9?stream=summaries"  # nobody listens on the discard port
    source = Listed([message(n) for n in range(40)])
    with pytest.raises(SinkLost, match="run vista follow again") as told:
        follow(dataclasses.replace(options, deliver=(away,)), source, 1)
    assert "hush" not in str(told.value)
    assert len(held(Store.open(options.store))) == 7  # what is ours is live
