"""`vista report`: one page without network or script, small, of what is there, and nothing of it taken for markup."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cache_store import Store
from tools import cli, evaluations
from tools.home import Home
from tools.report import charts
from tools.report.assemble import assemble
from tools.report.page import Exhibit, Section, render


def vista(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    streams = capsys.readouterr()
    return int(stop.value.code or 0), streams.out, streams.err


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and whether every one that was opened was closed in order."""

    VOID = {"meta", "br", "use", "path", "rect", "line", "circle", "polygon", "polyline", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(small_home, tmp_path_factory) -> str:
    evaluation = {
        "verdict": "better <b>than</b> chance",
        "measures": {"ranking.auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
        "slices": {
            "last_touch": [{"slice": "new", "requests": 9, "auc": 0.5, "low": 0.4, "high": 0.6, "mrr": 0.1}]
        },
    }
    evaluations.keep(small_home.home.model, evaluation)
    study = tmp_path_factory.mktemp("s") / "pays.json"
    figures = {"gain": {"value": 0.06, "low": 0.05, "high": 0.07, "unit": "AUC", "target": None, "met": None}}
    study.write_text(
        json.dumps({"bench": "pays", "figures": figures, "notes": ["worth it"]}) + "\nnot json\n"
    )
    at = Home(small_home.path)
    return render(assemble(at, studies=[study]))


def test_the_page_is_one_file_that_asks_for_nothing(page):
    assert len(page.encode()) < 1_000_000
    reader = Reader(page)
    assert reader.open == []
    assert (
        not reader.all("script")
        and not reader.all("link")
        and not reader.all("img")
        and not reader.all("iframe")
    )
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)|@import", page)


def test_the_page_shows_everything_that_is_there(page):
    for words in ("Three clocks", "Lag of refreshes", "Generations by size", "Latency of a lookup", "Training curves",
                  "Ranking by age of the last touch", "The last runs", "worth it", "Healthy"):  # fmt: skip
        assert words in page


def test_the_page_reads_by_keyboard_and_screen_reader(page):
    reader = Reader(page)
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert reader.all("html")[0]["lang"] == "en" and [a for a in reader.all("a") if a.get("class") == "skip"]
    for chart in reader.all("svg"):
        assert chart["role"] == "img" and all(name in ids for name in chart["aria-labelledby"].split())
    for link in reader.all("a"):
        assert link["href"][1:] in ids
    assert all(cell.get("scope") == "col" for cell in reader.all("th"))
    assert len(reader.all("table")) == len(reader.all("caption")) and len(reader.all("h1")) == 1
    scrolled = [attrs for tag, attrs in reader.tags if tag == "div" and attrs.get("class") == "scroll"]
    assert scrolled and all(d["tabindex"] == "0" and d["aria-label"] for d in scrolled)


def test_a_chart_takes_its_colours_from_the_page_in_light_dark_and_print(page):
    assert "#0a000" not in page and "#0b000" not in page and "var(--series-1)" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_no_name_of_the_data_is_markup_or_steers(small_home):
    hostile = "<script>alert(1)</script>\x1b[2J‮&\"'"
    at = Home(small_home.path)
    svg = charts.bars("odd", hostile, hostile, [(hostile, {hostile: 1.0, "$b_2$": 2.0})], hostile)
    figure = Exhibit("odd-figure", hostile, hostile, columns=(hostile,), rows=[(hostile,)], svg=svg)
    more = [Section("odd", hostile, hostile, [figure])]
    text = render(assemble(at, more=more))
    reader = Reader(text)
    assert reader.open == [] and not reader.all("script")
    assert "\x1b" not in text and "‮" not in text and r"\x1b[2J\u202e" in text and "$b_2$" in text


def test_the_same_drawing_is_the_same_bytes():
    drawn = [charts.lines("a", "t", "s", {"x": ([1, 2], [3, 4])}, "x", "y") for _ in range(2)]
    assert drawn[0] == drawn[1] and "<dc:date>" not in drawn[0]


def test_the_verb_writes_the_page_and_leaves_what_is_not_its_own(small_home, tmp_path, capsys):
    out = tmp_path / "r.html"
    code, told, _ = vista(capsys, "report", "--home", small_home.path, "--out", out, "--dry-run", "--json")
    assert code == 0 and not out.exists() and json.loads(told)["bytes"] > 10_000
    for _ in range(2):
        assert vista(capsys, "report", "--home", small_home.path, "--out", out)[0] == 0
    out.write_text("my own page")
    code, _, err = vista(capsys, "report", "--home", small_home.path, "--out", out)
    assert code == 2 and "name another file" in err and out.read_text() == "my own page"
    assert vista(capsys, "report", "--home", tmp_path / "none")[0] == 2


def test_a_home_with_a_damaged_store_still_has_a_page(small_home, tmp_path):
    shutil.copytree(small_home.home.store, tmp_path / "store")
    for pointer in ((tmp_path / "store" / "CURRENT"), *(tmp_path / "store" / "generations").glob("*/READY")):
        pointer.write_text("x")
    text = render(assemble(Home(small_home.path, store=tmp_path / "store")))
    assert "Wrong" in text and "vista verify" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [360, 800, 1440])
def test_a_browser_shows_the_page_at_this_width(page, tmp_path, width):
    file, shot = tmp_path / "r.html", tmp_path / "r.png"
    file.write_text(page)
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1200", f"--screenshot={shot}",
             file.as_uri()]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    from PIL import Image

    with Image.open(shot) as image:
        assert image.size == (width, 1200)
        right = image.convert("L").crop((width - 4, 0, width, 1200))
        assert right.getextrema()[0] > 200, "something runs over the right edge"


def test_pictures_of_the_report_are_small_and_named_in_the_docs():
    folder = Path(__file__).parents[2] / "docs" / "images"
    pictures = sorted(folder.glob("report-*.png"))
    assert len(pictures) >= 6 and all(p.stat().st_size < 150_000 for p in pictures)
    text = (folder.parent / "operations.md").read_text(encoding="utf-8")
    assert all(p.name in text for p in pictures)


def test_a_store_of_many_users_is_looked_at_without_reading_their_keys(tmp_path, capsys, monkeypatch):
    """What makes status and report of a million users a matter of a second; the figure is in docs/operations.md."""
    from cache_store.read.generation import Generation
    from cache_store.testing import Truth
    from tools.drills.serving import publish

    truth = Truth(num_users=400, num_shards=8)
    store = truth.create(tmp_path / "home" / "store")
    for number in (1, 2, 3):
        publish(truth, store, number)
    walked = []
    keys = Generation.keys

    def counted(self, shard, states=False):
        walked.append((self.manifest.kind, shard))
        return keys(self, shard, states)

    monkeypatch.setattr(Generation, "keys", counted)
    with store.pin() as pinned:
        assert pinned.count_users() == int((truth.written(1002) >= 0).sum())
    assert not [shard for kind, shard in walked if kind == "full"]


def test_what_is_asked_for_is_on_the_page_as_well(small_home, tmp_path, capsys):
    with Store.open(small_home.home.store) as store:
        user = int(store.users(0)[0])
    out = tmp_path / "report.html"
    words = [
        "report",
        "--home",
        small_home.path,
        "--out",
        out,
        "--diff",
        "00000001",
        "--explain",
        user,
        "--json",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out)
    assert {"diff", "explain"} <= set(found["sections"]) and found["bytes"] < 1_000_000
    text = out.read_text("utf-8")
    assert (
        "What changed since 00000001" in text
        and f"User {user}" in text
        and "Weighs most in the summary" in text
    )


def test_a_folder_with_nothing_to_look_at_is_no_healthy_home(tmp_path, capsys):
    code, _, err = vista(capsys, "report", "--home", tmp_path)
    assert code == 2 and "nothing at" in err and not list(tmp_path.iterdir())
