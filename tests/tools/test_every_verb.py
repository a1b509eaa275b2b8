"""Every verb the command line has: it works, says what it would do, answers in JSON and in 80 columns, refuses bad
input, and Ctrl-C leaves nothing half done. The verbs are asked of the command line, so one without a row here fails.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_demo
import test_serve

from cache_store import Store
from tools import cli, console
from tools.command_line import command
from tools.verbs import VERBS
from vista.data import paths
from vista.data.tables.relocating import relocate
from vista.data.tables.warehouse import Warehouse

HOUR = 3_600_000


@dataclass(frozen=True)
class Row:
    """What is known of a verb. In the words, {home}, {tmp}, {log}, {logs} and {user} are filled in.

    Attributes:
        words: that work.
        keys: of its JSON, or of the first of a list.
        bad: words that are refused with exit code 2.
        told: is in what is said then.
        changes: something lasting, so that it has a dry run, and is interrupted here.
        before: words of a verb that is run first.
        elsewhere: the test that runs ``words`` for real, where they take long or do not end.
        raw: on a copied home that was not relocated.
    """

    words: str = ""
    keys: str = ""
    bad: str = ""
    told: str = ""
    changes: bool = False
    before: str = ""
    elsewhere: Callable[..., object] | None = None
    raw: bool = False


H = "--home {home}"
NO_HOME = "--home {tmp}/nothing"
DEMO = test_demo.test_after_the_demo_two_generations_are_live_with_their_proof
SERVE = test_serve.test_the_process_answers_says_that_it_is_ready_and_ends_on_sigterm
ROWS = {
    "demo": Row("--out {tmp}/d --users 50", "out clears users", "--out {logs}", "choose another", True, elsewhere=DEMO),
    "generate": Row("{tmp}/g --users 20 --max-events 30", "users event_rows", "{logs} --users 20", "holds", True),
    "init": Row("{log} --home {tmp}/h", "file log why", "{tmp}/none.parquet --home {tmp}/h", "none.parquet", True),
    "layouts": Row("", "kuairand yambda", "nobody", "nobody"),
    "ingest": Row(f"{{log}} {H}", "job counts exit_code", f"{{tmp}}/none.parquet {H}", "none.parquet", True),
    "train": Row(f"--steps 1 {H}", "bundle fingerprint verdict", f"--steps 1 {NO_HOME}", "ingest", True),
    "items": Row(f"refresh {H}", "items new placed", f"forget {H}", "refresh", True),
    "evaluate": Row(f"--slates 5 {H}", "measures verdict", NO_HOME, "nothing"),
    "plan": Row(f"refresh {H}", "job users minutes notes", f"compact {H}", "summarize"),
    "summarize": Row(H, "job counts generation", f"{H} --expire-after 0", "expire-after", True),
    "refresh": Row(H, "job counts generation", f"{H} --codec seeds=zip", "zip", True, before=f"ingest {{log}} {H}"),
    "follow": Row(f"{{inbox}} --turns 1 {H}", "number counts position", f"ftp://nowhere {H}", "ftp", True),
    "compact": Row(f"store {H}", "generation users", f"tables --files 0 {H}", "files", True),
    "prune": Row(f"{H} --keep 1", "generations", f"{H} --keep none", "keep", True),
    "rollback": Row(H, "line live was", f"{H} --to 00000009", "00000009", True),
    "promote": Row(f"00000001 {H}", "line live", f"00000009 {H}", "00000009", True),
    "forget": Row(f"{{user}} --yes {H}", "tables stores runs", f"not-a-number --yes {H}", "not-a-number", True),
    "relocate": Row(H, "old new files", NO_HOME, "nothing", True, raw=True),
    "push": Row(f"file://{{tmp}}/r {H}", "generation", f"file://{{tmp}}/r {H} --generation 00000009", "00000009", True),
    "pull": Row("file://{tmp}/r --store {tmp}/pulled", "generation", "file://{tmp}/r --store {tmp}/p --line a/b", "a/b",
                True, before=f"push file://{{tmp}}/r {H}"),
    "lookup": Row(f"{{user}} {H}", "generation users", f"not-a-number {H}", "not-a-number"),
    "recommend": Row(f"{{user}} -k 3 --candidates 20 {H}", "generation weights users",
                     f"{{user}} --weight nobody=1 {H}", "nobody"),
    "serve": Row(H, "flight http generation", f"{H} --host 0.0.0.0", "--token-file", elsewhere=SERVE),
    "status": Row(H, "healthy problems store", NO_HOME, "nothing at"),
    "runs": Row(H, "run job outcome counts", f"{{tmp}}/none {H}", "none"),
    "report": Row(f"{H} --out {{tmp}}/report.html", "report bytes sections",
                  f"{H} --study {{tmp}}/none.json", "none.json", True),
    "diff": Row(f"00000001 00000002 {H}", "changed drift", f"00000001 00000009 {H}", "00000009"),
    "explain": Row(f"{{user}} {H}", "history record held", f"not-a-number {H}", "not-a-number"),
    "verify": Row(H, "problems", f"{H} --generation 00000009", "00000009"),
    "doctor": Row(H, "ok checks", f"{H} --nothing", "No such option"),
    "config": Row(f"recommend {H}", "file options", f"nothing {H}", "nothing"),
    "bench": Row("list", "lookup serve", "nothing", "nothing"),
    "study": Row("list", "quality", "nothing", "nothing"),
    "drill": Row("list", "serving storm", "nothing", "nothing"),
}  # fmt: skip
CHANGING = [verb for verb, row in ROWS.items() if row.changes]
LOOKING = [verb for verb, row in ROWS.items() if not row.changes and row.elsewhere is None]


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def copied(small_home, folder: Path, raw: bool = False) -> SimpleNamespace:
    """A home of one's own, a log that it has not read, and a folder in which that log lies alone."""
    shutil.copytree(small_home.path, folder / "home", symlinks=True)
    if not raw:
        relocate(folder / "home" / "warehouse")
    with Store.open(small_home.home.store) as store:
        users, last = store.users(0)[:2].tolist(), store.manifest.watermark_ms
    (folder / "inbox").mkdir()
    columns = {
        "user_id": users,
        "item_id": [1, 2],
        "action": [0, 1],
        "timestamp_ms": [last + HOUR, last + HOUR],
    }
    pq.write_table(pa.table(columns), folder / "inbox" / "log.parquet")
    shutil.copy(folder / "inbox" / "log.parquet", folder / "log.parquet")
    (folder / "nothing").mkdir()
    return SimpleNamespace(home=folder / "home", tmp=folder, log=folder / "log.parquet", inbox=folder / "inbox",
                           logs=small_home.logs, user=users[0])  # fmt: skip


@pytest.fixture
def place(small_home, tmp_path) -> SimpleNamespace:
    return copied(small_home, tmp_path)


@pytest.fixture(scope="module")
def shared(small_home, tmp_path_factory) -> SimpleNamespace:
    """For verbs that change nothing."""
    return copied(small_home, tmp_path_factory.mktemp("shared"))


def filled(words: str, place: SimpleNamespace) -> list[str]:
    return words.format(**vars(place)).split()


def begun(verb: str, place: SimpleNamespace, capsys) -> list[str]:
    """The words of a verb, once what it needs has been done."""
    row = ROWS[verb]
    if row.before:
        assert vista(capsys, *filled(row.before, place))[0] == 0
    return [verb, *filled(row.words, place)]


def test_every_verb_has_a_row_and_no_row_is_of_no_verb():
    assert set(ROWS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_changes_something_can_say_it_without_doing_it(verb):
    options = {word for p in command(verb).params for word in p.opts}
    assert ("--dry-run" in options) == ROWS[verb].changes, verb


def fits(out: str, folder: Path) -> None:
    """Nothing is wider than 80 columns; but what is made to be copied in one piece: paths, commands, JSON."""
    lines = out.replace(str(folder), "").splitlines()
    wide = [line for line in lines if len(line) > 80 and not line.startswith(("  next: ", "{"))]
    assert not wide, "\n".join(wide)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr(console.out, "width", 80)  # of what has no width of its own
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("verb", VERBS)
def test_its_help_fits_80_columns(verb, capsys):
    code, out, _ = vista(capsys, verb, "--help")
    assert code == 0 and verb in out
    fits(out, Path("none"))


@pytest.mark.parametrize("verb", [v for v, row in ROWS.items() if row.elsewhere is None])
def test_it_works_and_answers_in_json(verb, request, small_home, tmp_path, capsys):
    row = ROWS[verb]
    assert row.keys, "every verb answers in JSON"
    where = copied(small_home, tmp_path, row.raw) if row.changes else request.getfixturevalue("shared")
    code, out, err = vista(capsys, *begun(verb, where, capsys), "--json")
    assert code == 0, err
    assert "Traceback" not in err
    found = json.loads(out.splitlines()[-1])
    assert set(row.keys.split()) <= set(found if isinstance(found, dict) else found[0])


@pytest.mark.parametrize("verb", LOOKING)
def test_what_it_tells_a_person_fits_80_columns(verb, shared, capsys):
    code, out, err = vista(capsys, verb, *filled(ROWS[verb].words, shared))
    assert code == 0 and out, err
    fits(out, shared.tmp)


@pytest.mark.parametrize("verb", VERBS)
def test_what_it_cannot_do_is_refused_with_code_2_by_name(verb, shared, capsys):
    code, _, err = vista(capsys, verb, *filled(ROWS[verb].bad, shared))
    assert code == 2 and ROWS[verb].told in err and "Traceback" not in err and "internal error" not in err


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder: size and time of its last change; but for leases and SQLite's own."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
        and "leases" not in p.parts
        and not p.name.endswith((".lock", "-journal", "-wal", "-shm"))
    }


@pytest.mark.parametrize("verb", CHANGING)
def test_a_dry_run_changes_no_file(verb, small_home, tmp_path, capsys):
    where = copied(small_home, tmp_path, ROWS[verb].raw)
    words = begun(verb, where, capsys)
    before = tree(tmp_path)
    code, out, err = vista(capsys, *words, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])
    code, out, err = vista(capsys, *words, "--dry-run")
    assert code == 0 and out, err
    fits(out, tmp_path)
    assert tree(tmp_path) == before


# Ctrl-C

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
LOOKS = {"open", "os.scandir", "os.listdir"}


class Interruption:
    """Ctrl-C at the main thread's n-th change to a file below a folder; or at its n-th look, where asked for."""

    def __init__(self) -> None:
        self.folder, self.at, self.seen, self.looks = "", 0, 0, False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: Any) -> None:
        if not self.folder or event not in (LOOKS if self.looks else {"open", *WRITES}):
            return
        if threading.current_thread() is not threading.main_thread():
            return
        if (
            not self.looks
            and event == "open"
            and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(self.folder):
            return
        self.seen += 1
        if self.seen == self.at:
            signal.raise_signal(
                signal.SIGINT
            )  # as a terminal sends it: verbs that have a handler are asked by it

    @contextmanager
    def during(self, folder: Path, at: int, looks: bool = False) -> Iterator[None]:
        self.folder, self.at, self.seen, self.swallowed, self.looks = str(folder), at, 0, False, looks
        before, sys.unraisablehook = sys.unraisablehook, self._not_raised
        # A shell that starts tests with & has it ignored, and other tests' libraries have handlers of their own.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            self.folder = ""
            sys.unraisablehook = before
            signal.signal(signal.SIGINT, handler or signal.default_int_handler)

    def _not_raised(self, what: Any) -> None:
        """It came while a finaliser ran, where Python cannot raise anything."""
        self.swallowed = self.swallowed or what.exc_type is KeyboardInterrupt


@pytest.fixture(scope="session")
def interruption() -> Interruption:
    return Interruption()


def whole(place: SimpleNamespace, capsys, live: set[str]) -> None:
    """The home serves one of the generations ``live``, and everything in it can be read."""
    code, out, err = vista(capsys, "verify", "--home", place.home, "--json")
    assert code == 0, out + err
    with Store.open(place.home / "store") as store:
        assert store.manifest.generation in live
    files = [
        f.path for some in Warehouse(place.home / "warehouse").open().bucket_files().values() for f in some
    ]
    assert all(os.path.exists(paths.local_path(f)) for f in files)
    code, out, _ = vista(capsys, "status", "--home", place.home, "--json")
    assert code in (0, 3), out


@pytest.mark.parametrize("part", [0.3, 0.9])
@pytest.mark.parametrize("verb", [v for v in CHANGING if ROWS[v].elsewhere is None])
def test_ctrl_c_leaves_nothing_half_done_and_the_verb_can_be_run_again(
    verb, part, small_home, tmp_path, capsys, interruption
):
    first = copied(small_home, tmp_path / "first", ROWS[verb].raw)
    words = begun(verb, first, capsys)
    with interruption.during(first.tmp, 0):
        assert vista(capsys, *words)[0] == 0
    writes = interruption.seen
    assert writes, f"vista {verb} changes something, but no file"
    again = copied(small_home, tmp_path / "again", ROWS[verb].raw)
    words = begun(verb, again, capsys)
    with interruption.during(again.tmp, max(1, round(writes * part))):
        code, _, err = vista(capsys, *words)
    assert code == 130 or (code == 0 and (interruption.swallowed or interruption.seen < interruption.at))
    assert "Traceback" not in err and "internal error" not in err, err
    if code == 130 and verb in ("ingest", "summarize", "refresh"):
        assert "stopped; the same command with --run-dir" in err or "nothing was begun" in err, err
    if code == 130 and verb == "train":
        assert ("nothing to go on from" in err) != any(again.home.rglob("checkpoint.pt")), err
    if ROWS[verb].raw:
        assert vista(capsys, *words)[0] == 0
    whole(again, capsys, {"00000001", "00000002", "00000003"})
    code, _, err = vista(capsys, *words)
    told = {"rollback": "no generation before", "generate": "holds", "init": "--force"}  # it was done
    assert code == 0 or (code in (2, 3) and verb in told and told[verb] in err), err
    whole(again, capsys, {"00000001", "00000002", "00000003", "00000004"})


def test_a_service_that_follows_ends_by_sigterm_with_its_turn_and_code_0(place, capsys):
    """As a supervisor stops it; what it had taken is live, and the home whole."""
    ended = threading.Event()

    def stop_it() -> None:
        for _ in range(2_400):
            if ended.wait(0.05):
                return
            with Store.open(place.home / "store", verify=False) as live:
                if live.manifest.generation == "00000003":
                    break
        os.kill(os.getpid(), signal.SIGTERM)

    def too_early(*_: object) -> None:
        raise AssertionError("SIGTERM came where nobody waited for it")

    before = signal.signal(signal.SIGTERM, too_early)
    watching = threading.Thread(target=stop_it, daemon=True)
    try:
        watching.start()
        code, out, err = vista(capsys, "follow", place.inbox, "--home", place.home, "--json")
    finally:
        ended.set()
        watching.join(30)
        assert signal.signal(signal.SIGTERM, before) is too_early
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["generation"] == "00000003"
    whole(place, capsys, {"00000003"})


@pytest.mark.parametrize("verb", LOOKING)
def test_ctrl_c_while_it_looks_ends_it_at_once_and_changes_nothing(verb, shared, capsys, interruption):
    words = [verb, *filled(ROWS[verb].words, shared)]
    with interruption.during(shared.tmp, 0, looks=True):
        assert vista(capsys, *words)[0] == 0
    looks, before = interruption.seen, tree(shared.tmp)
    with interruption.during(shared.tmp, max(1, round(looks / 2)), looks=True):
        code, _, err = vista(capsys, *words)
    ended = code == 130 or (code == 0 and (interruption.swallowed or interruption.seen < interruption.at))
    assert ended and "Traceback" not in err and "internal error" not in err, err
    assert code == 0 or tree(shared.tmp) == before


def test_a_demo_that_was_interrupted_is_cleared_by_the_next(tmp_path, capsys, interruption):
    words = ["demo", "--out", tmp_path / "d", "--users", 50, "--seconds", 5, "--workers", 1]
    with interruption.during(tmp_path, 20):
        code, _, err = vista(capsys, *words)
    assert code == 130 and "Traceback" not in err, err
    code, out, err = vista(capsys, *words, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["clears"] > 0, err


def test_a_store_compacted_with_a_run_directory_is_a_run_like_others(place, capsys):
    run = place.home / "runs" / "compact-mine"
    code, out, err = vista(capsys, "compact", "store", "--home", place.home, "--run-dir", run, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["generation"] == "00000003" and told["counts"]["deltas"] == 1, err
    code, out, _ = vista(capsys, "runs", "--home", place.home, "--json")
    assert code == 0 and ("compact", "done") in {(r["job"], r["outcome"]) for r in json.loads(out)}
    whole(place, capsys, {"00000003"})
