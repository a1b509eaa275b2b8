"""How near each candidate comes to the nearest of its context's keys, without copying contexts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vista.ops.crossing import Plan


def nearest(x: Tensor, keys: Tensor, mask: Tensor, plan: Plan) -> Tensor:
    """Largest cosine of each candidate with a key of its user; 0 where the user has none.

    Args:
        x: [B, D]. keys: [U, S, D]. mask: bool [U, S], keys that count. plan: candidates to users.

    Returns:
        [B].
    """
    x, keys = F.normalize(x, dim=-1), F.normalize(keys, dim=-1)
    outputs = []
    for group in plan.groups:
        rows = x.view(plan.users, group.width, -1) if group.rows is None else x[group.rows]
        there, seen = (keys, mask) if group.users is None else (keys[group.users], mask[group.users])
        cosine = rows @ there.transpose(1, 2)  # [G, M, S]
        best = cosine.masked_fill(~seen[:, None], -1.0).amax(-1)
        outputs.append((best * seen.any(1, keepdim=True)).flatten())
    out = torch.cat(outputs) if outputs else x.new_zeros(0)
    return out if plan.back is None else out[plan.back]
