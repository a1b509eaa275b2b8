"""Rate of stage 1 on histories of very different lengths, beside one perfectly full batch and a plain product.

Sides, per core and in turn: ``heavy`` summarises users whose lengths are lognormal (sigma 1.5: a few hold most of the
events); ``full`` as many users with as many events, all of one length that is a multiple of C, so that there is
neither a tail nor padding nor a user larger than another; ``matmul`` multiplies ``[rows, D] x [D, 4 D]``, the widest
projection of a layer; ``record`` makes the default record of the same users, ``before`` what it was until version 0.1
(16 seeds and hashed slots), both at width 64. Work is counted as multiplications and additions of the layers as they
are defined, seeds included, padding excluded.
"""

from __future__ import annotations

import numpy as np
import torch

from tools.bench.harness import Figure, Result, in_turn, median, ratio, sized
from vista.config import EmbeddingConfig, ModelConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.embedding.encoders import EventEncoder, ItemEncoder
from vista.stage1 import seed_tokens
from vista.stage1.summarizer import Summarizer

HASHED = 3_210
"""Buckets a row of the hashed slots that were the record until version 0.1, beside 16 seeds."""


def built(
    width: int, layers: int, heads: int, chunk: int, seeds: int, slots: int, tokens: int, device: str
) -> Summarizer:
    """A summarizer with weights of seed 0: seed tokens of whole events, buckets of slots, exact tokens."""
    config = ModelConfig(
        width=width,
        embedding=EmbeddingConfig(rows=65_536),
        tokens=TokenConfig(items=tokens),
        slots=SlotConfig(buckets=slots),
        summarizer=SummarizerConfig(layers=layers, heads=heads, chunk=chunk, seeds=seeds, rows="events"),
    )
    torch.manual_seed(0)
    events = EventEncoder(config, ItemEncoder(config))
    model = Summarizer(config, events)
    for part in (model, events, events.items, model.slots, model.tokens):
        part.to(device)
    return model


def histories(lengths: np.ndarray, seed: int = 0) -> Events:
    """Random events, a minute apart."""
    random = np.random.default_rng(seed)
    n = int(lengths.sum())
    time = 1_600_000_000_000 + np.arange(n) * 60_000
    return Events.of(lengths, item=random.integers(0, 50_000, n), action=random.integers(1, 8, n), time=time)


def lengths_of(users: int, mean: int, seed: int = 0) -> np.ndarray:
    """Lognormal lengths, sigma 1.5, that add up to ``users * mean``; every user has an event."""
    draw = np.random.default_rng(seed).lognormal(0.0, 1.5, users)
    lengths = np.maximum((draw / draw.sum() * users * mean).astype(np.int64), 1)
    lengths[np.argmax(lengths)] += users * mean - lengths.sum()
    return lengths


def operations(model: Summarizer, events: int, users: int) -> float:
    """Floating point operations of the layers: events and seeds."""
    s, d = model.config.summarizer, model.config.width
    head = d // s.heads
    row = 2 * d * d * 11  # q, k, v, gate: 4; out: 1; SGLU: 6
    state, read = 2 * d * head, 2 * d * head
    inner = events * (s.layers - 1) * (row + state + read)
    last = events * (2 * d * d * 2 + state)
    return inner + last + users * s.seeds * s.layers * (row + read)


def state_bytes(model: Summarizer, events: Events) -> float:
    """Mean over users."""
    return float(
        np.mean([len(state.to_bytes()) for state in model.summarize(events).states if state is not None])
    )


@sized(users=24, mean=512)
def run(
    quick: bool,
    users: int = 64,
    mean: int = 1_024,
    width: int = 256,
    layers: int = 3,
    heads: int = 4,
    chunk: int = 256,
    seeds: int = 16,
    device: str = "cpu",
) -> Result:
    model = built(width, layers, heads, chunk, seeds, 0, 0, device)
    # the record as it is by default, and as it was: each whole, at the default width
    record = built(64, 2, 2, chunk, 0, 0, TokenConfig.items, device)
    before = built(64, 2, 2, chunk, 16, HASHED, 0, device)
    spread = lengths_of(users, mean)
    heavy, full = histories(spread), histories(np.full(users, mean))
    a = torch.randn(seed_tokens.STEP_ROWS, width, device=device)
    b = torch.randn(width, 4 * width, device=device)
    flops = 2.0 * seed_tokens.STEP_ROWS * width * 4 * width
    products = max(1, round(operations(model, len(full), users) / flops / 4))

    def done() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def summarize(which: Summarizer, events: Events) -> None:
        which.summarize(events)
        done()

    def matmul() -> None:
        for _ in range(products):
            a @ b
        done()

    seconds = in_turn(
        {
            "heavy": lambda: summarize(model, heavy),
            "full": lambda: summarize(model, full),
            "record": lambda: summarize(record, heavy),
            "before": lambda: summarize(before, heavy),
            "matmul": matmul,
        },
        repeats=3 if quick else 7,
    )
    work = operations(model, len(heavy), users)
    rate, plain = work / seconds["heavy"] / 1e9, products * flops / seconds["matmul"] / 1e9
    return Result(
        params={
            "longest": int(spread.max()),
            "median": float(np.median(spread)),
            "threads": torch.get_num_threads(),
        },
        figures={
            "of_full_batch": ratio(seconds["full"], seconds["heavy"], target=0.9),
            "of_matmul": ratio(rate, plain, target=0.6),
            "events_per_second": median(len(heavy) / seconds["heavy"], "events/s"),
            "gflops": median(rate, "GFLOP/s"),
            "matmul_gflops": median(plain, "GFLOP/s"),
            "record_events_per_second": median(len(heavy) / seconds["record"], "events/s"),
            "record_against_hashed": ratio(seconds["before"], seconds["record"], target=1.0),
            "record_state_bytes": Figure(state_bytes(record, heavy), "bytes a user"),
            "hashed_state_bytes": Figure(state_bytes(before, heavy), "bytes a user"),
            "events": Figure(float(len(heavy)), "events"),
        },
    )
