"""Runs as OpenTelemetry sees them; each in a process of its own, as a tracer provider is set once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_worlds import World

from beam_jobs.run import spans

SCRIPT = """
import json, sys
{before}
from beam_jobs.errors import InputFailed
from beam_jobs.generation import summarize
from beam_jobs.run.runner import local_args
def run(name, mode):
    try:
        paths = dict(warehouse={tables!r}, bundle={bundle!r}, store={path!r} + name + "-store", run_dir={path!r} + name)
        summarize.run(summarize.SummarizeOptions(**paths, progress=False), mode)
    except InputFailed as error:
        print("failed", file=sys.stderr)
if __name__ == "__main__":
    {then}
"""
IN_MEMORY = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
TOLD = "print(json.dumps([json.loads(span.to_json()) for span in exporter.get_finished_spans()]))"


def summarized(world: World, then: str, before: str = "", **env: str) -> str:
    """What a process prints that summarizes."""
    script = world.path / "script.py"
    paths = {"tables": str(world.path / "tables"), "bundle": str(world.bundle), "path": f"{world.path}/"}
    script.write_text(SCRIPT.format(before=before, then=then, **paths))
    here = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), **env}
    done = subprocess.run(
        [sys.executable, str(script)], env=here, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_a_span_with_its_tasks_and_their_phases_below_another_programs(small_world):
    file = next(iter(small_world.tables.bucket_files().values()))[0].path.removeprefix("file://")
    then = (
        'run("run", local_args("multi_processing", 2)); '
        f'open({file!r}, "wb").write(b"no parquet"); run("bad", local_args()); {TOLD}'
    )
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    told = json.loads(summarized(small_world, then, IN_MEMORY, TRACEPARENT=above))
    first, second = (n for n, span in enumerate(told) if span["name"] == "vista summarize")
    good, bad = told[: first + 1], told[first + 1 : second + 1]

    by_id = {span["context"]["span_id"]: span for span in good}
    names: dict[str, list[dict[str, Any]]] = {}
    for span in good:
        names.setdefault(span["name"], []).append(span)
    (run,), (step,) = names["vista summarize"], names["summarize"]
    assert run["parent_id"] == "0xb7ad6b7169203331"
    assert run["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert run["attributes"]["vista.users"] == 12
    assert run["attributes"]["vista.generation"] == "00000001"
    assert run["attributes"]["vista.exit_code"] == 0
    assert by_id[step["parent_id"]] is run
    tasks = [*names["bucket-00000"], *names["bucket-00001"]]
    assert sum(task["attributes"]["vista.users"] for task in tasks) == 12
    for span in good:
        if span in (run, step):
            continue
        parent = by_id[span["parent_id"]]
        assert (parent is step) == (span in tasks)
        assert parent["start_time"] <= span["start_time"] <= span["end_time"] <= parent["end_time"]
    for phase in ("read", "model", "write"):
        assert len(names[phase]) == 2

    failed = {span["name"]: span["status"] for span in bad if span["status"]["status_code"] == "ERROR"}
    assert {"vista summarize", "summarize"} < set(failed)
    (task,) = (name for name in failed if name.startswith("bucket"))
    assert Path(file).name in failed[task]["description"]


def test_nothing_is_imported_or_kept_where_nobody_asks(small_world):
    assert (
        summarized(small_world, 'run("run", local_args()); print("opentelemetry" in sys.modules)')
        == "False\n"
    )
    assert not (small_world.path / "run/times").exists()


def test_the_environment_alone_turns_spans_on(small_world):
    told = summarized(
        small_world, 'run("run", local_args())', OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="nightly"
    )
    assert '"name": "vista summarize"' in told
    assert '"service.name": "nightly"' in told


@pytest.mark.parametrize(
    ("env", "warned"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, ""),
        (
            {"OTEL_TRACES_EXPORTER": "none-such"},
            "no exporter none-such is installed; pip install 'vista-cache[otel]'",
        ),
    ],
)
def test_there_are_no_spans_where_the_environment_says_so_or_names_what_is_not_installed(
    env, warned, monkeypatch, caplog
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert spans.tracer() is None
    assert warned in caplog.text
