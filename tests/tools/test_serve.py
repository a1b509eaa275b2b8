"""`vista serve`: the same answers as the store's own, over Arrow Flight; tokens, TLS, errors, health, and its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

from cache_store import Status, Store
from cache_store.flight.asking import OPTIONS, Asked, BadRequest, Busy
from cache_store.flight.client import SummaryClient
from cache_store.flight.coalescing import Coalescer
from cache_store.flight.pages import page
from cache_store.flight.server import Limits, SummaryServer, Tls
from cache_store.testing import Truth
from tools import cli
from tools.drills import serving

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef-token"


@pytest.fixture(params=[False, True], ids=["int64", "string"])
def world(request, tmp_path):
    """A known store at generation 1 and its truth."""
    truth = Truth(num_users=60, strings=request.param)
    store = truth.create(tmp_path / "store")
    serving.publish(truth, store, 1)
    return truth, store, tmp_path / "store"


@pytest.fixture
def serve():
    """Makes servers in this process, and ends them."""
    made = []

    def make(path, **options) -> SummaryServer:
        store = Store(path, **({"clock": options.pop("clock")} if "clock" in options else {}))
        made.append(SummaryServer(store, **{"refresh_s": 0.02, **options}))
        return made[-1]

    yield make
    for server in made:
        server.close(5)


def address(server: SummaryServer, tls: bool = False) -> str:
    return f"grpc{'+tls' if tls else ''}://localhost:{server.port}"


def until(true) -> bool:
    pause = threading.Event()
    for _ in range(3_000):
        if true():
            return True
        pause.wait(0.01)
    return False


def test_an_answer_is_what_the_store_holds_in_the_order_asked_for(world, serve):
    truth, store, path = world
    at = np.random.default_rng(1).integers(0, truth.num_users, 40)
    with SummaryClient(address(serve(path)), form="groups") as client:
        assert serving.compare(truth, client.lookup(truth.users[at]), at) == "00000001"
        nobody = client.lookup(["nobody"] if truth.strings else [1 << 60])
        assert nobody.column("status").to_pylist() == [int(Status.MISSING)]
        assert not nobody.column("seeds").to_numpy_ndarray().any()
        assert client.lookup(truth.users[:0]).num_rows == 0
    with SummaryClient(address(serve(path)), form="rows") as client, Store.open(path) as own:
        rows = client.lookup(truth.users[at]).column("row").to_pylist()
        assert rows == [row.tobytes() for row in own.lookup_raw(truth.users[at]).rows]


def test_a_ticket_is_answered_as_an_exchange_is(world, serve):
    truth, _, path = world
    server = serve(path)
    kind = pa.string() if truth.strings else pa.int64()
    users = pa.record_batch({"user": pa.array(truth.users[:5], kind)})
    schema = users.schema.with_metadata({OPTIONS: b'{"form": "groups"}'})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(users)
    client = flight.connect(address(server))
    got = client.do_get(flight.Ticket(sink.getvalue().to_pybytes())).read_all().to_batches()[0]
    with SummaryClient(address(server), form="groups") as other:
        assert got.equals(other.lookup(truth.users[:5]))
    with pytest.raises(flight.FlightServerError, match="BadRequest"):
        client.do_get(flight.Ticket(b"nonsense")).read_all()


def test_it_moves_to_what_is_published_and_says_that_it_waits_before(tmp_path, serve):
    truth = Truth(num_users=40)
    store = truth.create(tmp_path / "store")
    server = serve(tmp_path / "store")
    assert page(server, "/readyz")[0] == 503 and page(server, "/healthz")[0] == 200
    with SummaryClient(address(server), retry_s=0, form="groups") as client:
        with pytest.raises(flight.FlightUnavailableError, match="NothingPublished"):
            client.lookup([1])
    everybody = np.arange(truth.num_users)
    with SummaryClient(address(server), retry_s=60, form="groups") as client:
        for number in (1, 2, 3):
            serving.publish(truth, store, number)
            name = f"{number:08d}"
            assert until(lambda name=name: server.store.generation_read == name)
            assert serving.compare(truth, client.lookup(truth.users), everybody) == name
            assert client.describe()["generation"] == name
    assert page(server, "/readyz")[0] == 200
    metrics = page(server, "/metrics")[2].decode()
    assert "vista_lookup_users_total" in metrics and "vista_serve_requests_total 3.0" in metrics
    assert page(server, "/other")[0] == 404


@pytest.mark.parametrize(
    "options", [{"form": "x"}, {"tokens": 0}, {"tokens": True}, {"fingerprint": 7}, {"other": 1}]
)
def test_options_that_nobody_can_follow_are_named(options):
    with pytest.raises(BadRequest, match=next(iter(options)) if "other" not in options else "other"):
        Asked.parse(json.dumps(options).encode())
    for text in (b"[1]", b"{", b'"x"', b"[" * 100_000):
        with pytest.raises(BadRequest, match="JSON"):
            Asked.parse(text)


def test_what_cannot_be_answered_is_told_by_name_and_the_next_request_is_answered(world, serve):
    truth, _, path = world
    server = serve(path, limits=Limits(per_request=50))
    wrong = [1] if truth.strings else ["a"]
    with SummaryClient(address(server), form="groups") as client:
        with pytest.raises(flight.FlightServerError, match="KeyKind") as told:
            client.lookup(wrong)
        assert json.loads(told.value.extra_info) == {"error": "KeyKind", "retry": False}
        assert "Traceback" not in str(told.value) and str(path) not in str(told.value)
        with pytest.raises(flight.FlightServerError, match="at most 50"):
            client.lookup(truth.users[np.zeros(51, int)])
        assert client.lookup(truth.users[:50]).num_rows == 50
    for options, name in (({"form": "sequence"}, "SchemaError"), ({"fingerprint": "other"}, "FingerprintMismatch"),
                          ({"nonsense": 1}, "BadRequest")):  # fmt: skip
        with (
            SummaryClient(address(server), **options) as client,
            pytest.raises(flight.FlightServerError, match=name),
        ):
            client.lookup(truth.users[:1])


def test_damage_is_told_as_such_and_not_as_a_reason_to_ask_again(world, serve):
    truth, store, path = world
    now = [1_000]
    server = serve(path, refresh_s=60, clock=lambda: now[0])
    with SummaryClient(address(server), form="groups") as client:
        client.lookup(truth.users)
        for file in path.glob("generations/*/shard-*.mdb"):
            with open(file, "ab") as grown:
                grown.write(b"x" * 4096)
        now[0] += 10_000  # all files are due to be looked at
        with pytest.raises(flight.FlightInternalError, match="Damaged") as told:
            client.lookup(truth.users)
        assert json.loads(told.value.extra_info) == {"error": "Damaged", "retry": False}
        assert str(path) not in str(told.value)


def test_nobody_comes_in_without_a_token_that_the_server_knows(world, serve):
    truth, _, path = world
    server = serve(path, tokens=[TOKEN, "another-token-of-length"])
    for token in (None, "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()):
        with SummaryClient(address(server), token=token) as client:
            with pytest.raises(flight.FlightUnauthenticatedError):
                client.lookup(truth.users[:1])
        with pytest.raises(flight.FlightUnauthenticatedError):
            SummaryClient(address(server), token=token).describe()
    for token in (TOKEN, "another-token-of-length"):
        with SummaryClient(address(server), token=token) as client:
            assert client.lookup(truth.users[:1]).num_rows == 1
    assert 'vista_serve_errors_total{error="Unauthenticated"} 10.0' in page(server, "/metrics")[2].decode()


def test_with_tls_only_who_speaks_it_is_answered(world, serve, tmp_path):
    truth, _, path = world
    certificate, key = self_signed()
    server = serve(path, host="localhost", tls=Tls(certificate, key))
    with SummaryClient(address(server, tls=True), root=certificate) as client:
        assert client.lookup(truth.users[:3]).num_rows == 3
    other, _ = self_signed()
    for where, root in ((address(server), None), (address(server, tls=True), other)):
        with (
            SummaryClient(where, root=root, retry_s=0) as client,
            pytest.raises((flight.FlightError, OSError)),
        ):
            client.lookup(truth.users[:1])


def self_signed() -> tuple[bytes, bytes]:
    """Certificate of localhost and its key, PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), private


def test_requests_that_come_while_one_is_read_are_read_together_and_each_gets_its_own():
    first, go, batches = threading.Event(), threading.Event(), []

    def read(users):
        batches.append(len(users))
        first.set()
        assert go.wait(60)
        return users * 10

    joined, found = Coalescer(read, most=1_000, most_waiting=1_000), {}

    def ask(k):
        answer, rows = joined.ask(np.arange(k, k + 3))
        found[k] = answer[rows].tolist()

    threads = [threading.Thread(target=ask, args=(0,))]
    threads[0].start()
    assert first.wait(60)
    threads += [threading.Thread(target=ask, args=(k,)) for k in range(10, 30)]
    for thread in threads[1:]:
        thread.start()
    assert until(lambda: joined._users == 63)
    go.set()
    for thread in threads:
        thread.join(60)
    assert batches == [3, 60]
    assert found == {k: [10 * k, 10 * k + 10, 10 * k + 20] for k in (0, *range(10, 30))}


def test_a_lookup_takes_no_more_than_its_bound_and_too_many_are_turned_away():
    first, go, batches = threading.Event(), threading.Event(), []

    def read(users):
        batches.append(len(users))
        first.set()
        assert go.wait(60)
        if 7 in users:
            raise ValueError("seven")
        return users

    joined, errors = Coalescer(read, most=4, most_waiting=9), []

    def ask(users):
        try:
            joined.ask(np.array(users))
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(u,)) for u in ([1], [2, 3], [4, 5], [6, 7, 8])]
    threads[0].start()
    assert first.wait(60)
    for k, thread in enumerate(threads[1:]):
        thread.start()
        assert until(lambda k=k: joined._users == [3, 5, 8][k])
    with pytest.raises(Busy):
        joined.ask(np.array([1, 2]))
    go.set()
    for thread in threads:
        thread.join(60)
    assert batches == [1, 4, 3] and errors == ["seven"] and joined._users == 0


def test_a_sequence_is_the_one_that_the_module_of_pytorch_gives(small_home, serve):
    import torch

    from cache_store.flight.server import read_vectors
    from cache_store.torch.feature import SummaryFeature
    from cache_store.torch.sequence import ItemVectors

    file = small_home.home.model / "vectors.npz"
    with Store.open(small_home.home.store) as store:
        users = store.users(0)
        mine = SummaryFeature(store)(users).sequence(ItemVectors.read(file), tokens=12, places=0)
    server = serve(small_home.home.store, vectors=lambda fingerprint: read_vectors(file))
    with SummaryClient(address(server), tokens=12) as client:
        got = client.lookup(users)
    shape = (len(users), 12)
    bias = got.column("bias").flatten().to_numpy().reshape(shape)
    there = np.isfinite(bias)
    assert there.any() and (there == torch.isfinite(mine.log_mass).numpy()).all()
    assert (got.column("items").flatten().to_numpy().reshape(shape)[there] == mine.items.numpy()[there]).all()
    np.testing.assert_allclose(bias[there], mine.log_mass.numpy()[there], rtol=1e-6)
    np.testing.assert_allclose(
        got.column("tokens").to_numpy_ndarray()[there], mine.tokens.numpy()[there], atol=1e-6
    )


def test_the_client_of_the_docs_runs_as_it_is_printed(small_home, serve):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "serve-protocol.md").read_text("utf-8"), re.S
    )
    server = serve(small_home.home.store)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        exec(block.replace("grpc://127.0.0.1:8815", address(server)), names)
        assert names["found"].num_rows == 3 and {"items", "bias", "status"} <= set(
            names["found"].schema.names
        )
    assert len(blocks[0].strip().splitlines()) <= 10


# The process


def refused(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", *map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_would_be_open_to_others_or_cannot_begin_is_refused(small_home, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VISTA_SERVE_TOKEN", raising=False)
    where = ("--home", small_home.path, "--port", 0, "--http-port", 0)
    err = refused(capsys, *where, "--host", "0.0.0.0")
    assert "--token-file" in err and "--tls-cert" in err and "--insecure" in err
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    assert "--tls-cert" in refused(capsys, *where, "--host", "::", "--token-file", tmp_path / "tokens")
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "empty").write_text("\n")
    for name, told in (("short", "16"), ("empty", "none"), ("absent", "absent")):
        assert told in refused(capsys, *where, "--token-file", tmp_path / name)
    assert "together" in refused(capsys, *where, "--tls-cert", tmp_path / "short")
    assert "No such option" in refused(capsys, *where, "--token", TOKEN)
    assert "no-home" in refused(capsys, "--home", tmp_path / "no-home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "listen" in refused(capsys, *where[:4], "--http-port", taken.getsockname()[1])


def test_the_process_answers_says_that_it_is_ready_and_ends_on_sigterm(world):
    truth, _, path = world
    with (
        serving.served(path, token=TOKEN) as server,
        SummaryClient(server.address, token=TOKEN, form="groups") as client,
    ):
        assert serving.compare(truth, client.lookup(truth.users), np.arange(truth.num_users)) == "00000001"
        with urllib.request.urlopen(f"{server.http}/readyz", timeout=60) as answer:
            assert answer.read() == b"ready\n"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.http}/../etc/passwd", timeout=60)
        assert server.end(signal.SIGTERM) == 0  # with an exchange that is open
        assert "stopping" in server.errors() and TOKEN not in server.errors()
    assert not list((path / "leases").iterdir())


def test_under_load_with_generations_published_and_the_server_killed_nothing_is_wrong_or_lost():
    report = serving.run(7, clients=2, generations=5, kills=1, users=80)
    assert not report.faults and report.kills == 1 and report.published == 5
    assert report.answers >= 2 * 5 and report.seen >= 2


def test_a_server_that_could_not_begin_gives_the_signals_back(world, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["serve", "--store", str(world[2]), "--port", "0", "--http-port", str(port)]
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
    assert stop.value.code == 2 and "cannot listen" in " ".join(capsys.readouterr().err.split())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
