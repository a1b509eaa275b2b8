"""What a push or a pull would copy, told without copying: for ``vista push --dry-run`` and ``vista pull --dry-run``."""

from __future__ import annotations

from typing import Any

from cache_store.format import lines
from cache_store.format import manifest as manifests
from cache_store.format.checked import KIB
from cache_store.remote.copy import CopyReport, _is, _local
from cache_store.remote.store import NO_PARENT, RemoteStore, identity
from cache_store.store import Store


def of_push(
    store: Store, generation: str | None, url: str, storage_options: dict[str, Any] | None = None
) -> CopyReport:
    """As :func:`cache_store.remote.copy.push`: what is at the URL already is looked at by size and digest.

    Raises:
        RemoteError, Damaged, FormatUnknown, SchemaError, GenerationUnknown, NothingPublished
    """
    remote = RemoteStore(url, storage_options)
    if remote.files.size("FORMAT") is not None:
        remote.match(store.layout)
    name = generation or lines.live(store.layout, store.line).live
    chain = manifests.chain(store.layout, lines.promotable(store.layout, store.line, name))
    report, parent = CopyReport(generation=name), NO_PARENT
    for manifest in reversed(chain):
        text = manifest.text()
        parent = identity(manifest.generation, text, parent)
        report.chain.append(parent)
        base = f"generations/{parent}"
        whole = remote.files.read(f"{base}/READY", KIB) == manifests.seal(text)
        for file, fact in manifest.files.items():
            path = f"{base}/{file}"
            there = whole or (
                remote.files.size(path) == fact.bytes and remote.files.digest(path) == fact.digest
            )
            _add(report, there, fact.bytes)
    report.folder = parent
    return report


def of_pull(
    url: str,
    store: Store | None,
    line: str,
    *,
    remote_line: str | None = None,
    generation: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> CopyReport:
    """As :func:`cache_store.remote.copy.pull`; ``store`` is None where there is none yet.

    Raises:
        RemoteError, GenerationUnknown, Damaged, FormatUnknown, SchemaError
    """
    remote = RemoteStore(url, storage_options)
    if store is not None:
        remote.match(store.layout)
    tip = remote.find(generation) if generation else remote.tip(line if remote_line is None else remote_line)
    report = CopyReport(folder=tip)
    for g in reversed(list(remote.chain(tip))):
        report.chain.append(g.folder)
        here = _local(store.layout, g) if store is not None else None
        report.generation = here or ""
        for file, fact in g.manifest.files.items():
            there = here is not None or (store is not None and _is(store.layout.run(g.run_id) / file, fact))
            _add(report, there, fact.bytes)
    return report


def _add(report: CopyReport, there: bool, size: int) -> None:
    if there:
        report.found += 1
    else:
        report.copied += 1
        report.bytes += size
