"""Configurations check themselves and survive their text form."""

from __future__ import annotations

import dataclasses

import pytest

from vista.config import (
    ModelConfig,
    SlotConfig,
    SummarizerConfig,
    fingerprint,
    from_text,
    to_text,
)
from vista.errors import ConfigError


def test_a_configuration_equals_its_text_read_back() -> None:
    config = ModelConfig(width=32, actions=("click", "save"), slots=SlotConfig(buckets=128))
    assert from_text(ModelConfig, to_text(config)) == config


def test_missing_fields_take_their_defaults() -> None:
    assert from_text(ModelConfig, '{"width": 32}') == ModelConfig(width=32)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"widht": 64}', "widht"),
        ('{"width": "64"}', "width"),
        ('{"width": true}', "width"),
        ('{"width": 30}', "width"),
        ('{"summarizer": {"heads": 3}}', "summarizer.heads"),
        ('{"actions": ["a", "a"]}', "actions"),
        ('{"slots": {"half_lives_days": [0]}}', "half_lives"),
        ('{"tokens": {"items": 0}}', "tokens.items.*summarizer.seeds"),
        ('{"tokens": {"half_lives_events": ["inf"]}}', "tokens.half_lives_events.*found"),
        ('{"tokens": {"places": 600}}', "tokens.places.*found 600"),
        ('{"summarizer": {"kind": "nonsense"}}', "summarizer.kind.*found 'nonsense'"),
        ('{"summarizer": {"rows": "words"}}', "summarizer.rows.*found 'words'"),
        ('{"summarizer": {"reconstruction_window": 1}}', "reconstruction_window.*found 1"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_name_of_its_field(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_text(ModelConfig, text)


def test_the_fingerprint_changes_with_any_field_and_with_the_weights() -> None:
    base = ModelConfig()
    others = [
        dataclasses.replace(base, width=128),
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, summarizer=SummarizerConfig(chunk=128)),
    ]
    prints = {fingerprint(c) for c in [base, *others]} | {fingerprint(base, b"weights")}
    assert len(prints) == len(others) + 2
    assert fingerprint(base) == fingerprint(from_text(ModelConfig, to_text(base)))
