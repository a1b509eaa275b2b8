"""What Prometheus is told of a home, and that the dashboard and the alerts ask for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from cache_store.store import Store
from tools import cli

DOCS = Path(__file__).parents[2] / "docs"
READERS = {"vista_lookups_total", "vista_lookup_users_total", "vista_lookup_bytes_total", "vista_lookup_errors_total",
           "vista_refreshes_total", "vista_lookup_latency_seconds_bucket", "vista_generation_age_seconds"}  # fmt: skip


def test_the_home_s_metrics_are_what_prometheus_reads(small_home, tmp_path, capsys):
    parser = pytest.importorskip("prometheus_client.parser")
    out = tmp_path / "vista.prom"
    with pytest.raises(SystemExit):
        cli.main(["status", "--home", str(small_home.path), "--prometheus", str(out)])
    capsys.readouterr()
    families = {f.name: f for f in parser.text_string_to_metric_families(out.read_text())}
    with Store.open(small_home.home.store) as store:
        newest = store.manifest.watermark_ms
    assert families["vista_store_newest_event_timestamp_seconds"].samples[0].value == newest / 1000
    assert families["vista_store_users"].samples[0].value == 60
    assert {s.labels["job"] for s in families["vista_run_bad"].samples} == {"ingest", "summarize", "refresh"}
    assert list(tmp_path.iterdir()) == [out]


def known() -> set[str]:
    source = (Path(__file__).parents[2] / "tools" / "metrics_text.py").read_text()
    names = set(re.findall(r'"(vista_[a-z_]+)"', source))
    return names | READERS | {f"vista_store_{n}_timestamp_seconds" for n in ("newest_event", "published")}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"\bvista_[a-z_]+", expression))


def test_every_alert_asks_for_metrics_that_exist_and_names_a_paragraph_that_exists():
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    rules = [
        r for g in yaml.safe_load((DOCS / "grafana" / "alerts.yml").read_text())["groups"] for r in g["rules"]
    ]
    assert len(rules) >= 10
    for rule in rules:
        assert asked(rule["expr"]) and asked(rule["expr"]) <= known(), rule["alert"]
        heading = rule["annotations"]["runbook"]
        anchor = re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        assert heading in headings and rule["annotations"]["runbook_url"].endswith(f"#{anchor}")


def test_every_panel_asks_for_metrics_that_exist():
    panels = json.loads((DOCS / "grafana" / "dashboard.json").read_text())["panels"]
    for panel in panels:
        expression = panel["targets"][0]["expr"].replace(
            "vista_store_(free|needed)_bytes", "vista_store_free_bytes"
        )
        assert asked(expression) and asked(expression) <= known(), panel["title"]
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)
