"""What a file says of Kafka reaches its clients; what would undo a promise, or is no setting, is refused unread."""

from __future__ import annotations

import pytest

from beam_jobs.errors import OptionsError
from beam_jobs.follow.sinks import open_sink
from beam_jobs.follow.sources import open_source
from tools import cli

kafka = pytest.importorskip("confluent_kafka")
SECRET = "sasl.password=hunter=2"


def test_settings_of_a_file_reach_reader_and_writer_over_ours_but_for_what_promises_rest_on(tmp_path):
    from beam_jobs.follow.kafka_client import client

    file = tmp_path / "client.properties"
    file.write_text(f"# ours\n\ntest.mock.num.brokers = 2\n! none\ngroup.id=theirs\n{SECRET}\n")
    for kind, more in ((kafka.Consumer, {"group.id": "ours"}), (kafka.Producer, {})):
        brokers = (
            client(kind, str(file), {"bootstrap.servers": "127.0.0.1:1", **more})
            .list_topics(timeout=10)
            .brokers
        )
        assert len(brokers) == 2  # of librdkafka's own mock, which nothing but the file asked for


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{SECRET}\nbootstrap.servers=elsewhere", "expected no bootstrap.servers"),
        (f"{SECRET}\nno.such.setting=1", "no.such.setting"),
        (f"{SECRET}\nhunter=2\nsasl.password", "line 3, found another"),
        (f"{SECRET}\n{SECRET}", "line 2, found sasl.password a second time"),
        ("sasl.jaas.config=hunter", "Java"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("opened", [open_source, open_sink])
def test_what_is_no_setting_or_one_of_ours_is_refused_without_a_secret(opened, text, said, tmp_path):
    file = tmp_path / "client.properties"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OptionsError, match=said) as told:
        opened("kafka://localhost:9092/topic", str(file))
    assert str(file) in str(told.value) and "hunter" not in str(told.value)


def test_the_verb_takes_the_file_and_refuses_one_that_no_topic_needs(tmp_path, capsys):
    file = tmp_path / "client.properties"
    file.write_text("no.such.setting=1")
    for source, said in ((str(tmp_path), "found none"), ("kafka://localhost:9092/events", "no.such.setting")):
        words = ["follow", source, "--kafka-config", file, "--home", tmp_path / "home", "--dry-run"]
        with pytest.raises(SystemExit) as done:
            cli.main([*map(str, words)])
        assert done.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
