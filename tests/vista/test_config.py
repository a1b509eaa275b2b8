"""Configurations check themselves and survive their text form."""

from __future__ import annotations

import dataclasses

import pytest

from vista.config import (
    ModelConfig,
    RankerConfig,
    SlotConfig,
    SummarizerConfig,
    TokenConfig,
    as_written,
    fingerprint,
    from_before,
    from_dict,
    from_text,
    to_dict,
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
        ('{"tokens": "huge"}', "tokens: expected one of.*found 'huge'"),
        ('{"tokens": {"items": 0}}', "tokens.items.*summarizer.seeds"),
        ('{"tokens": {"half_lives_events": ["inf"]}}', "tokens.half_lives_events.*found"),
        ('{"tokens": {"places": 600}}', "tokens.places.*found 600"),
        ('{"ranker": {"cluster_ages": 5}}', "ranker.cluster_ages.*4, 10 or 20.*found 5"),
        ('{"summarizer": {"kind": "nonsense"}}', "summarizer.kind.*found 'nonsense'"),
        ('{"summarizer": {"rows": "words"}}', "summarizer.rows.*found 'words'"),
        ('{"summarizer": {"reconstruction_window": 1}}', "reconstruction_window.*found 1"),
        (
            '{"summarizer": {"chunk": 2147483648}}',
            "summarizer.chunk.*1048576.*found 2147483648",
        ),  # took 24 GB
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


def test_a_model_of_an_older_text_reads_as_it_did_and_keeps_its_name():
    then = to_dict(ModelConfig())
    for name in ("ages", "cluster_ages", "direct", "neighbours", "near"):
        del then["ranker"][name]
    del then["embedding"]["words_width"], then["tokens"]["last"], then["tokens"]["clusters_told"]
    config = from_dict(ModelConfig, from_before(then))
    assert config.ranker == RankerConfig(ages=False, cluster_ages=4, direct=0, neighbours=0, near=True)
    assert as_written(config) == then
    assert from_dict(ModelConfig, from_before(to_dict(ModelConfig()))) == ModelConfig()
    then = to_dict(ModelConfig())
    del then["ranker"]["cluster_ages"]
    assert from_dict(ModelConfig, from_before(then)).ranker == RankerConfig(cluster_ages=4)
    assert as_written(ModelConfig())["ranker"] == then["ranker"]  # states go on under the default of now
    then["ranker"]["cluster_waves"] = True
    config = from_dict(ModelConfig, from_before(then))
    assert config.ranker == RankerConfig(cluster_ages=20)
    assert as_written(config)["ranker"] == then["ranker"]


def test_a_model_of_before_tells_all_clusters_and_so_does_one_that_asks_for_as_many_as_there_are() -> None:
    then = {"tokens": {"items": 864, "clusters": 4_096}}
    tokens = from_dict(ModelConfig, from_before(then)).tokens
    assert (tokens.items, tokens.clusters_told, tokens.told) == (864, 0, 0)
    few = TokenConfig(clusters=40)
    assert few.clusters_told > 40 and few.told == 0
    assert few.bytes == dataclasses.replace(few, clusters_told=0).bytes


def test_sizes_by_name_fill_their_pages() -> None:
    from cache_store.format.record import Group, RecordSchema
    from vista.stage1.exact_tokens import ExactTokenGroup
    from vista.stage1.tokens import ExactTokens

    for size, pages in (("whole", 8), ("half", 4), ("small", 2), ("tiny", 1)):
        config = from_text(ModelConfig, f'{{"tokens": "{size}"}}')
        schema = RecordSchema(tuple(Group(*g) for g in ExactTokenGroup(ExactTokens(config)).groups()))
        assert schema.pages == pages and schema.record_bytes <= pages * 4_096 - 16
        assert from_text(ModelConfig, to_text(config)) == config
    assert TokenConfig() == TokenConfig.named("whole")
