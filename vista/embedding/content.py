"""What items are about as numbers: their vectors, and the words of their texts and categories.

    content row = [ vector / |vector| ; words / |words| ]            [W + T], parts that an item lacks are 0

A word is 128 signs, the bits of its XXH3-128; the words of an item are added up, those that come often by the root of
how often. So no dictionary has to be kept, an item that comes later is read like any other, and two texts are as near
as they share words. Better vectors are those of one's own encoder.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import xxhash

from vista.data.tables.content import ItemContent

WORDS_WIDTH = 128
"""T, where an item has words."""

_WORD = re.compile(r"[^\W_]+")
_BETWEEN = re.compile(r"\s*[|;,>/]\s*")


def widths(content: ItemContent) -> tuple[int, int]:
    """(W, T) that a model needs to read this content; zeros for what no item has."""
    return content.width, WORDS_WIDTH if content.has_text else 0


def content_rows(content: ItemContent, width: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Items int64 [M] of which something can be read, ascending, and their content rows float32 [M, width + words].

    Args:
        width, words: W and T of the model; vectors of another width than W, and words where T is 0, are not read.
    """
    found = np.zeros((len(content), width + words), np.float32)
    if width and content.width == width:
        found[content.vector_of, :width] = _unit(content.vector)
    if words:
        for i, (category, text) in enumerate(zip(content.category, content.text, strict=True)):
            if category is not None or text is not None:
                found[i, width:] = word_vector(category or "", text or "")
    known = found.any(1)
    return content.item[known], found[known]


def word_vector(category: str, text: str) -> np.ndarray:
    """float32 [T], of unit length, or 0 without a word: of a text its words, of a category its names as they are."""
    words = Counter(w.lower() for w in _WORD.findall(text))
    words.update(f"category:{name.lower()}" for name in _BETWEEN.split(category.strip()) if name)
    if not words:
        return np.zeros(WORDS_WIDTH, np.float32)
    bits = np.frombuffer(b"".join(xxhash.xxh3_128_digest(w.encode()) for w in words), np.uint8)
    signs = np.unpackbits(bits).reshape(len(words), WORDS_WIDTH).astype(np.float32) * 2 - 1
    total = np.sqrt(np.array(list(words.values()), np.float32)) @ signs
    return _unit(total[None])[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    # large ones would overflow when squared
    rows = rows / np.maximum(np.abs(rows).max(1, keepdims=True), 1e-30)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
