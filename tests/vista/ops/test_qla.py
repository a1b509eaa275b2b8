from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vista.ops.qla import qla_memory, qla_read, qla_states, qla_target
from vista.ops.qla_naive import qla_naive
from vista.stage1.packing import Strands, pack

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(rows: int, heads: int, width: int, seed: int, grad: bool = False) -> Rows:
    random = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(rows, heads, width, generator=random, dtype=torch.float64).requires_grad_(grad)
        for _ in range(3)
    )


def packed(
    source: Rows,
    target: Rows,
    lengths: list[int],
    chunk: int,
    gain: torch.Tensor,
    log_decay: torch.Tensor,
    max_rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fast form over many histories: outputs of all events in order, outputs of the targets of each."""
    q, k, v = source
    heads, width = q.shape[1:]
    n = np.array(lengths)
    offsets = np.concatenate([[0], np.cumsum(n)])
    chunks = n // chunk if chunk else np.zeros_like(n)
    strands = Strands(offsets[:-1], np.zeros_like(n), chunks, np.arange(len(n)), n)
    state = {}
    events, rows, own, cuts = [], [], [], []
    for step in pack(strands, chunk, len(target[0]), max_rows):
        before = [torch.zeros(heads, width, width, dtype=q.dtype), *(state[s] for s in step.carried.tolist())]
        index = torch.from_numpy(step.rows)
        keys = F.silu(k[index])
        states = qla_states(keys, v[index], step.plan, torch.stack(before, dim=1), log_decay)
        memory = qla_memory(states, step.plan, gain, log_decay)
        events.append(qla_read(F.silu(q[index]), memory, step.plan))
        rows.append(index)
        reads = torch.from_numpy(step.reads)
        spread = [x.unsqueeze(0).expand(len(reads), *x.shape) for x in target]
        own.append(qla_target(F.silu(spread[0]), F.silu(spread[1]), spread[2], memory[:, reads]))
        cuts.append(torch.from_numpy(step.cuts))
        state.update(zip(step.kept.tolist(), states[:, torch.from_numpy(step.states)].unbind(1), strict=True))
    place = torch.cat(rows)
    assert sorted(place.tolist()) == list(range(offsets[-1]))
    return torch.cat(events)[place.argsort()], torch.cat(own)[torch.cat(cuts).argsort()]


CASES = [
    pytest.param([0, 1, 3, 4, 5, 11, 16], 4, 1000, id="U7-C4-one-step"),
    pytest.param([0, 1, 3, 4, 5, 11, 16], 4, 9, id="U7-C4-many-steps"),
    pytest.param([23], 3, 7, id="U1-C3-carried"),
    pytest.param([1, 1, 9, 10, 17, 2], 64, 1000, id="U6-C64-tails-only"),
    pytest.param([0, 5, 12], 0, 1000, id="U3-full-form"),
]


@pytest.mark.parametrize("half_life", [math.inf, 6.0])
@pytest.mark.parametrize("lengths, chunk, max_rows", CASES)
def test_the_packed_form_equals_plain_loops_in_output_and_gradient(lengths, chunk, max_rows, half_life):
    heads, width, seeds = 2, 3, 2
    log_decay = torch.tensor([0.0, -math.log(2) / half_life], dtype=torch.float64)
    gain = torch.tensor([1.7, 0.6], dtype=torch.float64, requires_grad=True)
    source, target = draw(sum(lengths), heads, width, 0, True), draw(seeds, heads, width, 1, True)
    fast = packed(source, target, lengths, chunk, gain, log_decay, max_rows)

    parts = [x.split(lengths) for x in source]
    naive = [
        qla_naive(tuple(p[u] for p in parts), target, gain, log_decay.exp(), chunk)
        for u in range(len(lengths))
    ]
    expected = torch.cat([n[0] for n in naive]), torch.stack([n[1] for n in naive])
    for found, wanted in zip(fast, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)

    def gradients(outputs):
        weights = [torch.cos(torch.arange(o.numel(), dtype=torch.float64)).view_as(o) for o in outputs]
        loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
        return torch.autograd.grad(loss, [*source, *target, gain])

    for found, wanted in zip(gradients(fast), gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_the_gradient_through_the_inner_phi_agrees_with_finite_differences():
    log_decay = torch.tensor([0.0, -0.1], dtype=torch.float64)

    def form(*x):
        return packed(x[:3], x[3:6], [3, 5], 2, x[6], log_decay, 6)

    gain = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(form, (*draw(8, 2, 2, 2, True), *draw(2, 2, 2, 3, True), gain))


def test_a_target_row_is_not_read_by_any_other_row():
    source, target = draw(7, 2, 3, 4), draw(3, 2, 3, 5)
    gain, log_decay = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    events, before = packed(source, target, [7], 4, gain, log_decay, 100)
    changed = tuple(x.clone() for x in target)
    for x in changed:
        x[1] += 1
    events_after, after = packed(source, changed, [7], 4, gain, log_decay, 100)
    assert torch.equal(events, events_after)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_an_event_reads_its_own_chunk_and_no_later_one():
    source, target = draw(12, 1, 3, 6), draw(1, 1, 3, 7)
    gain, log_decay = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    events, _ = packed(source, target, [12], 4, gain, log_decay, 100)
    changed = tuple(x.clone() for x in source)
    changed[2][6] += 1
    after, _ = packed(changed, target, [12], 4, gain, log_decay, 100)
    assert torch.equal(events[:4], after[:4])
    assert not torch.isclose(events[4:], after[4:]).all(dim=(1, 2)).any()


def test_states_are_float32_under_bfloat16_autocast():
    q, k, v = (x.float() for x in draw(8, 2, 4, 8))
    strands = Strands(*(np.array([x]) for x in (0, 0, 2, 0, 8)))
    (step,) = pack(strands, 4, 1, 100)
    carry = torch.zeros(2, 1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        states = qla_states(k.bfloat16(), v.bfloat16(), step.plan, carry, torch.zeros(2, dtype=torch.float64))
    assert states.dtype == torch.float32
    exact = torch.einsum("nhe,nhf->hef", k.bfloat16().double(), v.bfloat16().double())
    torch.testing.assert_close(states[:, -1].double(), exact, rtol=1e-5, atol=1e-5)
