"""What a first pass over a text log finds out about its columns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Facts:
    """What the values of a text log's columns are in the rows that will be taken: by column, how many there are, and
    how many of them are integers, numbers (integers too), and lists of integers or of strings.

    Attributes:
        listed: rows of JSON, of all, whose value is a list.
        texts: columns of JSON in which a text looks like an integer, which makes all of it text.
        names: all columns of the file, or keys of its objects.
        times: of all rows' times, how many there are, are integers, numbers, and times as text; samples: some of
            those that are none of it.
        taken: rows that decided.
    """

    values: dict[str, int] = field(default_factory=dict)
    integers: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    samples: list[str] = field(default_factory=list)
    taken: int = 0
