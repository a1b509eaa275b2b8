"""Quasi-linear attention in plain loops: the definition that :mod:`vista.ops.qla` is checked against.

arXiv 2510.22049, section 3 and appendix B, with what the paper leaves open decided here:

- phi is SiLU, inside and outside: ``o = phi(q) phi(M)``.
- ``M`` is the *mean* state, ``gain * A / c`` with ``A = sum_i w_i phi(k_i)^T v_i`` and ``c = sum_i w_i``. The paper's
  plain sum grows with the history, and an outer phi on it changes its meaning with length.
- ``w_i = decay ** (age of event i in events)``, 1 for heads that keep everything.
- Chunk-causal: an event reads the state after the last event of its own chunk. ``chunk = 0`` is the paper's full
  form, one chunk for the whole history.
- A target row reads the state after the last event, plus itself through the diagonal term
  ``(phi(q) . phi(k)) v / E``, and nothing reads it.

Letters: ``N`` events, ``M`` target rows, ``H`` heads, ``E`` width of a head, ``C`` chunk.
"""

from __future__ import annotations

import torch


def _phi(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def qla_naive(
    source: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    gain: torch.Tensor,
    decay: torch.Tensor,
    chunk: int,
    before: tuple[torch.Tensor, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One history, one event at a time.

    Args:
        source: q, k, v of the events, [N, H, E] each.
        target: q, k, v of the target rows, [M, H, E] each.
        gain, decay: [H].
        chunk: C; 0 for the full form.
        before: state sum [H, E, E] and number of the events that came before (a multiple of C), if any.

    Returns:
        outputs of the events [N, H, E], of the target rows [M, H, E], and the state sum after the last event.
    """
    q, k, v = source
    events, heads, width = q.shape
    state = [before[0][h] if before else q.new_zeros(width, width) for h in range(heads)]
    count = before[1] if before else 0

    def read(row: torch.Tensor, h: int) -> torch.Tensor:
        mass = sum(decay[h] ** age for age in range(count))
        mean = gain[h] * state[h] / mass if count else torch.zeros_like(state[h])
        return _phi(row) @ _phi(mean)

    out = [[q.new_zeros(width)] * heads for _ in range(events)]
    chunk = chunk or max(events, 1)
    for start in range(0, events, chunk):
        rows = range(start, min(start + chunk, events))
        for i in rows:
            for h in range(heads):
                state[h] = decay[h] * state[h] + torch.outer(_phi(k[i, h]), v[i, h])
            count += 1
        for i in rows:
            for h in range(heads):
                out[i][h] = read(q[i, h], h)
    tq, tk, tv = target
    own = [
        [read(tq[t, h], h) + (_phi(tq[t, h]) @ _phi(tk[t, h])) * tv[t, h] / width for h in range(heads)]
        for t in range(len(tq))
    ]

    def stacked(rows: list, like: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.stack(row) for row in rows]) if rows else like.new_zeros(0, heads, width)

    return stacked(out, q), stacked(own, tq), torch.stack(state)
