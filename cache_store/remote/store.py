"""What lies at a URL that generations were pushed to: folders of generations, and pointers of lines.

    URL/
      FORMAT                            that of the store; only stores of the same facts exchange generations
      CURRENT, lines/NAME               which folder a line points to; replaced last
      generations/00000007-IDENTITY/    one generation, never changed
        (its files)  manifest.json      as in the store
        PARENT                          folder of the parent generation, or "-"
        READY                           digest of manifest.json; written last

IDENTITY is the digest of manifest.json and PARENT, so that a folder's name says all of its content and of everything
below it; two pushes of the same generation write the same bytes. Parents are pushed before their deltas: where READY
is, the chain below is whole. Nothing reads a folder without READY.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cache_store.errors import Damaged, GenerationUnknown, SchemaError
from cache_store.format import manifest as manifests
from cache_store.format.checked import KIB
from cache_store.format.layout import MAIN, UNPLACED, Layout, StoreFormat, check_name
from cache_store.format.manifest import Manifest
from cache_store.remote.files import RemoteError, RemoteFiles

NO_PARENT = "-"
FOLDER = re.compile(r"[0-9]{8,}-[0-9a-f]{32}")
"""A generation's: nothing else below ``generations`` is ours."""
_AGAIN = "run `vista push` again"


def identity(name: str, text: str, parent: str) -> str:
    """Remote folder of a generation: its name, and a digest of its manifest and its parent's folder."""
    digest = xxhash.xxh3_128_hexdigest(f"{parent}\n{text}".encode())
    return f"{name}-{digest}"


@dataclass(frozen=True)
class RemoteGeneration:
    """One generation at a URL: its folder, its manifest and its text, the folder of its parent or None."""

    folder: str
    text: str
    manifest: Manifest
    parent: str | None

    @property
    def run_id(self) -> str:
        """Under which its pull is staged; the same for every attempt, and for nothing else."""
        return f"pull-{self.folder}"


class RemoteStore:
    """Generations and lines below one URL. Methods raise ``RemoteError`` where the remote side fails.

    Attributes:
        files: the objects themselves.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self.files = RemoteFiles(url, storage_options)

    def format(self) -> StoreFormat:
        """Facts of the store that was pushed here.

        Raises:
            RemoteError: nothing was. FormatUnknown, Damaged
        """
        return StoreFormat.parse(self._format().decode("utf-8", "replace"), Path(self.files.name("FORMAT")))

    def match(self, layout: Layout) -> None:
        """Refuse a URL that holds generations of a store with other facts.

        Raises:
            SchemaError. RemoteError: it holds none.
        """
        theirs = self._format()
        if theirs != layout.read_format().text().encode():
            raise SchemaError(
                f"{self.files.name('FORMAT')}: expected the facts of {layout.format}, found {theirs[:120]!r}; use a "
                f"URL of its own per kind of store"
            )

    def claim(self, layout: Layout) -> None:
        """As :meth:`match`; a URL that holds nothing yet, or what a first push left that was killed while it wrote
        FORMAT, takes the facts of this store.

        Raises:
            SchemaError: also where it holds something else, which is nobody's to add to or to sweep.
        """
        ours = layout.read_format().text().encode()
        theirs = self.files.read("FORMAT", 64 * KIB)
        if theirs is None or (theirs != ours and ours.startswith(theirs)):
            names = self.files.folders("")
            if foreign := [n for n in names if (UNPLACED.sub(r"\1", n) if n[0] == "." else n) != "FORMAT"]:
                raise SchemaError(
                    f"{self.files.name('')}: expected nothing, or what was pushed before, found {foreign[:5]}; push to "
                    f"a URL of its own"
                )
            self.files.write("FORMAT", ours)
        self.match(layout)

    def _format(self) -> bytes:
        raw = self.files.read("FORMAT", 64 * KIB)
        if raw is None:
            raise RemoteError(
                f"{self.files.name('FORMAT')}: not there; nothing was pushed to this URL; run `vista push`"
            )
        return raw

    def lines(self) -> list[str]:
        """Every line that was pushed here."""
        main = [MAIN] if self.files.size(_pointer_path(MAIN)) is not None else []
        return main + [name for name in self.files.folders("lines") if not name.startswith(".")]

    def tip(self, line: str) -> str:
        """Folder that a line points to.

        Raises:
            RemoteError: the line was never pushed. Damaged
        """
        path = _pointer_path(line)
        raw = self.files.read(path, 64 * KIB)
        if raw is None:
            raise RemoteError(f"{self.files.name(path)}: line {line!r} was never pushed; run `vista push`")
        folder = raw.split(b"\n")[0].decode(errors="replace")
        if raw != _pointer_text(line, folder):
            raise Damaged(f"{self.files.name(path)}: check fails; {_AGAIN}, it writes the pointer anew")
        return folder

    def point(self, line: str, folder: str) -> None:
        """Let a line point to a folder."""
        self.files.write(_pointer_path(line), _pointer_text(line, folder))

    def find(self, wanted: str) -> str:
        """Folder of a complete generation by folder name or number.

        Raises:
            GenerationUnknown
        """
        names = self.files.folders("generations")
        hits = [
            n
            for n in names
            if wanted in (n, n.partition("-")[0]) and self.files.size(f"generations/{n}/READY") is not None
        ]
        if len(hits) != 1:
            what = "is not there" if not hits else f"may be any of {hits}; name the folder"
            raise GenerationUnknown(
                f"{self.files.url}: generation {wanted} {what}; complete or not: {names[-8:]}"
            )
        return hits[0]

    def read(self, folder: str) -> RemoteGeneration:
        """One generation, checked against its seal and its name.

        Raises:
            RemoteError: its push was not finished. Damaged, FormatUnknown
        """
        base = f"generations/{check_name(folder, 'remote generation')}"
        where = self.files.name(base)
        ready = self.files.read(f"{base}/READY", KIB)
        if ready is None:
            raise RemoteError(f"{where}: no READY, the push was not finished; {_AGAIN}")
        wanted = (("manifest.json", manifests.MOST_TEXT), ("PARENT", KIB))
        raw = [self.files.read(f"{base}/{name}", limit) or b"" for name, limit in wanted]
        try:
            text, parent = raw[0].decode(), raw[1].decode().strip()
        except UnicodeDecodeError as error:
            raise Damaged(f"{where}: manifest.json or PARENT is not UTF-8; {_AGAIN}") from error
        if manifests.seal(text) != ready or folder.partition("-")[2] != identity("", text, parent)[1:]:
            raise Damaged(f"{where}: manifest.json, PARENT and READY disagree; {_AGAIN}")
        manifest = Manifest.parse(text, Path(folder))
        if (manifest.parent is None) != (parent == NO_PARENT):
            raise Damaged(f"{where}: PARENT and the manifest disagree; {_AGAIN}")
        if manifest.generation != folder.partition("-")[0]:
            raise Damaged(f"{where}: states generation {manifest.generation}; {_AGAIN}")
        return RemoteGeneration(folder, text, manifest, None if parent == NO_PARENT else parent)

    def chain(self, tip: str) -> Iterator[RemoteGeneration]:
        """A generation and all below it, newest first.

        Raises:
            As :meth:`read`.
        """
        store, above = self.format(), None
        seen: set[str] = set()
        folder: str | None = tip
        while folder is not None:
            if folder in seen:
                raise Damaged(f"{self.files.name(folder)}: lies on itself; {_AGAIN} where it came from")
            seen.add(folder)
            found = self.read(folder)
            manifests.check_of_store(found.manifest, store, Path(self.files.name(folder)))
            if above is not None:
                manifests.check_lies_on(above.manifest, found.manifest, Path(self.files.name(above.folder)))
            yield found
            above = found
            folder = found.parent


def _pointer_path(line: str) -> str:
    return "CURRENT" if line == MAIN else f"lines/{check_name(line, 'line')}"


def _pointer_text(line: str, folder: str) -> bytes:
    check = xxhash.xxh3_64_hexdigest(f"{line}\n{folder}".encode())
    return f"{folder}\ncheck {check}\n".encode()
