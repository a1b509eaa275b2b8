"""Small files that anybody may have put there."""

import os

import pytest

from vista.config import from_file
from vista.data.generator import GeneratorOptions
from vista.errors import ConfigError
from vista.small_text import small_json, small_text


@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "missing", "link in a circle"])
def test_what_is_no_small_file_is_an_error_and_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)  # sparse
    elif kind != "missing":
        path.symlink_to("x")
    for read in (small_text, small_json):
        with pytest.raises(OSError):
            read(path)


@pytest.mark.parametrize("raw", [b"[" * 50_000, b"\xff\xfe", b"{", b"[1]", b"\0", b""])
def test_a_configuration_that_is_none_is_a_typed_error(raw, tmp_path):
    (tmp_path / "c.json").write_bytes(raw)
    with pytest.raises(ConfigError):
        from_file(GeneratorOptions, tmp_path / "c.json")
