"""What the benchmark of the device path needs around its parts: the device, another process, JSON and a table."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from tools.bench.harness import Figure, Result, commit


class Device:
    """One device, and the end of what was started on it."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.cuda = self.torch.type == "cuda"
        if self.cuda and not torch.cuda.is_available():
            raise typer.BadParameter("no CUDA device here; `-p device=cpu --quick` tries the script itself")

    def finished(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The work, and all that it left running."""

        def run() -> None:
            work()
            if self.cuda:
                torch.cuda.synchronize(self.torch)

        return run

    @property
    def card(self) -> dict[str, Any]:
        if not self.cuda:
            name = f"no GPU: {platform.processor() or platform.machine()}"
            return {"name": name, "torch": torch.__version__}
        facts = torch.cuda.get_device_properties(self.torch)
        return {
            "name": facts.name,
            "memory_gib": round(facts.total_memory / 2**30, 1),
            "multiprocessors": facts.multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }


def usable(on: Device) -> bool:
    """False once a kernel has touched what is not its own: CUDA then refuses this process everything."""
    try:
        on.finished(lambda: torch.ones(8, device=on.torch) + 1)()
    except RuntimeError:
        return False
    return True


def elsewhere(result: Result, parts: list[str], quick: bool, device: str, seconds: float) -> None:
    """The parts by a process of their own; their figures and notes beside ours."""
    with tempfile.TemporaryDirectory() as folder:
        told = {"device": device, "out": folder, "only": ",".join(parts), "seconds": f"{max(seconds, 1):.0f}"}
        words = ["bench", "gpu", "--json", *(["--quick"] if quick else [])]
        words += [word for key, value in told.items() for word in ("-p", f"{key}={value}")]
        command = [sys.executable, "-m", "tools", *words]
        try:
            subprocess.run(command, timeout=seconds + 60, capture_output=True, cwd=Path(__file__).parents[2])
        except subprocess.TimeoutExpired:
            result.notes.append(f"the process of {', '.join(parts)} was ended after {seconds + 60:.0f} s")
        page = Path(folder) / "gpu.json"
        report = json.loads(page.read_text("utf-8")) if page.exists() else {"figures": {}, "notes": []}
    result.notes.append(f"{', '.join(parts)}: by a process of their own, for the device refused this one")
    result.notes += report["notes"]
    for name, figure in report["figures"].items():
        met = figure.pop("met")
        over = figure["value"] >= (figure["target"] or 0.0)  # which side is met is not written down
        result.figures[name] = Figure(**figure, at_least=over == (met is not False))


def write(folder: Path, result: Result) -> None:
    """``gpu.json`` and ``gpu.md`` below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {key: figure.as_dict() for key, figure in result.figures.items()}
    report = {"commit": commit(), "params": result.params, "figures": figures, "notes": result.notes}
    (folder / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    met = {True: "yes", False: "**no**", None: ""}
    table = ["| figure | value | quartiles | target | met |", "|---|---|---|---|---|"]
    for key, f in figures.items():
        between = "" if f["low"] is None else f"{f['low']:g} to {f['high']:g}"
        target = "" if f["target"] is None else f"{f['target']:g}"
        table.append(f"| {key} | {f['value']:g} {f['unit']} | {between} | {target} | {met[f['met']]} |")
    facts = ", ".join(f"{key} {value}" for key, value in result.params.items() if key != "name")
    head = f"# Device path on {result.params['name']}\n\n{facts}"
    notes = [f"- {note}" for note in result.notes]
    text = "\n".join([head, f"\nCommit {report['commit']}; made by `make gpu`.\n", *table, "", *notes])
    (folder / "gpu.md").write_text(text.rstrip() + "\n", encoding="utf-8")
