"""How a command line is read, and how it speaks: strictly, lazily, never with the markup or controls of data."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import cli, console, settings
from tools.parameters import typed
from tools.verbs import VERBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "apache_beam", "faiss", "pyiceberg", "pyarrow", "matplotlib", "numpy")


def vista(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


def imported(*words: str) -> set[str]:
    code = (
        "import sys\nfrom tools import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print('|' + ' '.join(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.rpartition("|")[2].split())


def test_help_imports_nothing_that_is_heavy_and_no_verb_but_to_list_it():
    assert imported("--help") == set()


@pytest.mark.parametrize("verb", ["lookup", "forget", "refresh", "recommend", "train", "ingest"])
def test_help_of_a_verb_imports_neither_torch_nor_beam(verb):
    assert not imported(verb, "--help") & {"torch", "apache_beam", "faiss", "pyiceberg"}


def test_the_line_that_lists_a_verb_is_the_first_of_its_own_help(capsys):
    from tools.command_line import command, first_line

    for verb in VERBS:
        assert first_line(verb) and command(verb).help.startswith(first_line(verb)[:40]), verb


def test_the_module_of_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "vista", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "summarize" in done.stdout


@pytest.mark.parametrize("words", [
    ["lookup", "alice", "--jsn"], ["lookup", "-x", "1"], ["forget", "alice", "--yes", "--dry-rum"],
    ["recommend", "--k10", "3"], ["lookup", "-1x"], ["lookup", "--1"],
])  # fmt: skip
def test_an_unknown_option_is_an_error_and_never_a_user(words, capsys):
    code, _, err = vista(capsys, *words)
    assert code == 2 and "No such option" in err


@pytest.mark.parametrize("words", [
    ["lookup", "1", "--home", "a", "--home", "b"], ["lookup", "1", "--home=a", "--home", "a"],
    ["recommend", "1", "-k", "3", "--top", "4"], ["prune", "--keep", "1", "--keep", "2"],
])  # fmt: skip
def test_an_option_of_one_value_given_twice_is_an_error(words, capsys):
    code, _, err = vista(capsys, *words)
    assert code == 2 and "given twice" in err


@pytest.mark.parametrize(
    "words",
    [
        ("init", "LOG", "--home", "LOG"),
        ("doctor", "--home", "LOG"),
        ("ingest", "LOG", "--home", "LOG"),
        ("ingest", "LOG", "--home", "LOG-2", "--run-dir", "LOG"),
    ],
)
def test_a_path_that_cannot_be_is_the_users_to_mend_and_no_internal_error(words, capsys, tmp_path):
    log = tmp_path / "a.csv"
    log.write_text("user_id,item_id,action,timestamp_ms\n1,2,view,1700000000000\n")
    code, _, said = vista(capsys, *(word.replace("LOG", str(log)) for word in words))
    assert code == 2 and "expected a folder" in said and "internal" not in said
    assert log.read_text().startswith("user_id")


def test_a_name_given_two_values_is_an_error(capsys, tmp_path):
    words = ("--column", "action=is_click", "--column", "action=is_like", "--home", str(tmp_path))
    code, _, err = vista(capsys, "ingest", "x.parquet", *words)
    assert code == 2 and "is_click" in err and "is_like" in err
    assert not list(tmp_path.iterdir())


def test_negative_numbers_are_users_and_anything_after_dashes_is_a_word(monkeypatch):
    from tools import command_line

    def command(users: list[str], home: Path = Path("h"), k: int = 1) -> list[str]:
        return [*users, str(home), str(k)]

    monkeypatch.setitem(VERBS, "probe", "Look")
    monkeypatch.setattr(command_line, "load", lambda verb: command)
    probe = command_line.command("probe")

    def read(*words: str) -> list[str]:
        return probe.main(args=list(words), standalone_mode=False)

    assert read("-17", "5") == ["-17", "5", "h", "1"]
    assert read("5", "--home", "-3", "-17", "--k", "-2") == ["5", "-17", "-3", "-2"]
    assert read("a", "--home=x", "--", "--yes", "-17", "--home") == ["a", "--yes", "-17", "--home", "x", "1"]


@pytest.mark.parametrize(("kind", "word"), [("int64", "1_000"), ("int64", "+5"), ("int64", " 5"), ("int64", "٣"),
                                            ("int64", str(2**63)), ("int64", "1.0")])  # fmt: skip
def test_a_word_that_is_not_plainly_an_int64_is_no_user(kind, word):
    import typer

    from tools.options import parse_users

    with pytest.raises(typer.BadParameter, match="int64"):
        parse_users([word], kind)
    assert parse_users(["-9223372036854775808"], kind) == [-(2**63)]


STEERING = "\x1b]0;owned\x07 \x1b[2J \x9b31m a‮b ⁦ \r \x00 \n \x7f \ud800 [bold]x[/] [/] [link=http://x]"


def shown(print_it, width: int = 400) -> str:
    """What one of console's functions writes to a terminal."""
    from rich.console import Console

    stream = io.StringIO()
    before = console.out, console.err
    console.out = console.err = Console(
        file=stream,
        force_terminal=True,
        color_system=None,
        width=width,
        soft_wrap=True,
        markup=False,
        emoji=False,
    )
    try:
        print_it()
    finally:
        console.out, console.err = before
    return stream.getvalue()


@pytest.mark.parametrize("print_it", [
    lambda text: console.table(text, ("a", text), [(text, 1)]),
    lambda text: console.fields(text, {text: text}),
    lambda text: console.note(text),
    lambda text: console.failure("DataError", text),
], ids=["table", "fields", "note", "failure"])  # fmt: skip
def test_nothing_that_comes_from_data_steers_the_terminal_or_is_read_as_markup(print_it):
    out = shown(lambda: print_it(STEERING))
    for steering in ("\x1b]0", "\x1b[2J", "\x9b", "‮", "⁦", "\x00", "\x07", "\x7f", "\ud800", "\r"):
        assert steering not in out
    assert r"\x1b]0;owned\x07" in out and r"a\u202eb" in out
    assert "[bold]x[/] [/] [link=http://x]" in out


def test_a_table_too_wide_folds_its_widest_column_alone_where_that_is_enough():
    """A folded name or time reads like another one: recall@100 like recall@10."""
    path = "a/" * 60
    rows = [("baseline.popularity.recall@100", "2022-12-31T00:00:00.001", path)]
    out = shown(lambda: console.table("", ("name", "time (UTC)", "path"), rows), 80)
    assert all(whole in out for whole in rows[0][:2]) and out.count("/") == 60
    assert max(map(len, out.splitlines())) <= 80
    narrow = shown(lambda: console.table("", ("name", "time (UTC)", "path"), rows), 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert all(narrow.count(c) == "".join(rows[0]).count(c) for c in "@-/"), "nothing is cut off"


@given(st.text())
def test_what_is_safe_is_printable_and_text_without_controls_stays_as_it_is(text):
    safe = console.safe(text)
    assert all(c.isprintable() or c in console.JOINERS or c.isspace() for c in safe)
    assert not set(safe) & set(map(chr, (*range(32), *range(127, 160))))
    if text.isprintable():
        assert safe == text
    assert console.safe(safe) == safe


def test_json_is_ascii_whatever_the_names_are(capsys):
    console.json_line({"name": STEERING})
    out = capsys.readouterr().out
    assert out.isascii() and json.loads(out)["name"] == STEERING


def test_a_pipe_that_closes_early_ends_the_command_quietly():
    script = f"{sys.executable} -m tools bench list --json | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode in (0, 141) and "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_output_without_colour_or_in_ascii_works():
    env = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "tools", "bench", "list"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0 and "\x1b" not in done.stdout


# vista.toml


def write(home: Path, text: str) -> Path:
    home.mkdir(exist_ok=True)
    (home / "vista.toml").write_text(text)
    return home


def test_what_the_file_says_holds_and_a_flag_wins(tmp_path, capsys):
    home = write(tmp_path / "h", 'store = "far"\n[lookup]\nline = "night"\n')
    code, _, err = vista(capsys, "lookup", "1", "--home", str(home))
    assert code == 2 and "far" in err
    code, _, err = vista(capsys, "lookup", "1", "--home", str(home), "--store", "near")
    assert code == 2 and "near" in err and "far" not in err


@pytest.mark.parametrize(("text", "named"), [
    ("[lookup]\nlin = 1\n", "lin"), ("[look]\nline = 1\n", "look"), ("x = [\n", "TOML"),
    ("home = 'x'\n", "home"), ("[refresh]\ncodec = 'slots=int8'\n", "list"),
    ("[forget]\nyes = 'no'\n", "true or false"), ("expire_after = 30\n", "expire_after"),
    ("[lookup]\nmax-age-days = true\n", "max-age-days"),
])  # fmt: skip
def test_a_wrong_line_of_the_file_is_told_with_its_name(tmp_path, capsys, text, named):
    home = write(tmp_path / "h", text)
    verb = (
        text[1 : text.index("]")]
        if text.startswith(("[lookup]", "[refresh", "[forget", "[prune"))
        else "lookup"
    )
    words = [] if verb == "refresh" else ["1"]
    code, _, err = vista(capsys, verb, *words, "--home", str(home))
    assert code == 2 and "vista.toml" in err and named in err


def test_tables_of_ingest_are_handed_on(tmp_path):
    home = write(tmp_path / "h", '[log.columns]\nitem_id = "sku"\n[log.weights]\nbuy = 5\n')
    assert settings.read(home).tables == {"log": {"columns": {"item_id": "sku"}, "weights": {"buy": 5}}}


# -p KEY=VALUE


def probe(quick: bool, slots: bool = True, active: float = 0.1, users: int | None = None, ks: tuple[int, ...] = (),
          name: str = "", part: float | None = None) -> None:  # fmt: skip
    """A benchmark's signature."""


def test_parameters_are_read_as_they_are_declared():
    words = ["slots=False", "active=0.2", "users=none", "ks=1,2", "name=7", "part=1e-3"]
    assert typed(probe, words) == {
        "slots": False, "active": 0.2, "users": None, "ks": (1, 2), "name": "7", "part": 0.001,
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", [["slots=maybe"], ["users=1.5"], ["quick=1"], ["x=1"], ["slots"], ["users=1", "users=2"]]
)
def test_a_parameter_that_does_not_fit_is_an_error(words):
    import typer

    with pytest.raises(typer.BadParameter):
        typed(probe, words)
