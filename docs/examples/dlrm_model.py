"""The ranker of ``dlrm_ranker``: plain PyTorch in the manner of DLRM, with and without a reader of cached summaries.

Letters: U requests of a batch, C candidates of each, R recent events, S tokens, H horizons, d the ranker's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 32
"""d."""


USERS = 4_096
"""Rows of the hashed table of users."""


Batch = dict[str, Any]


class Tokens(NamedTuple):
    """What stands for many events each: item int64 [U, S], mass float32 [U, S, H], 0 where there is no token. Where a
    token is of many items ``content`` [U, S, W] and ``code`` int64 [U, S, L] stand for ``item``: what they are
    about, and where they lie from fine to coarse."""

    item: Tensor
    mass: Tensor
    content: Tensor | None = None
    code: Tensor | None = None


class History(NamedTuple):
    """What is told of each user's history.

    Attributes:
        there: bool [U], whether anything is.
        sequence: what is attended to: the heaviest items, as rows of the ranker's own table, or places.
        table: all items that the summary holds, as ids, ascending.
        counters: [U, clusters, H].
    """

    there: Tensor
    sequence: Tokens
    table: Tokens
    counters: Tensor


Clusters = Callable[[Tensor], Tensor]
"""Item ids to the clusters that the summaries count."""


class SequenceReader(nn.Module):
    """Attention from candidates to tokens with masses, both in the ranker's own item vectors.

    Token t stands for m_t events of its item: its score is ``sharpness * cosine + log m_t``, and beside the tokens
    there is an empty one, so the share that falls on tokens tells how many of the candidate's kind there are. Query and
    key start as one and the same map: from the first step on a candidate finds the items that are like it. A reader
    whose weights start at random learns nothing from the same tokens.

    Beside that softmax a hard one: all masses of the tokens that share the candidate's code, at each of ``levels``.
    """

    def __init__(
        self,
        d: int,
        horizons: int,
        levels: int,
        sharpness: Sequence[float] = (12.0, 30.0),
        empty: float = 0.8,
    ) -> None:
        super().__init__()
        heads = len(sharpness)
        self.query, self.key = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)
        self.log_sharpness = nn.Parameter(torch.tensor(sharpness).log())
        self.empty = nn.Parameter(torch.full((heads,), empty))
        self.horizon = nn.Parameter(torch.zeros(heads, horizons))  # how much each horizon's mass counts
        self.value, self.out = nn.Linear(d, d), nn.Linear(heads * d, d)
        self.features = heads + levels * horizons

    def forward(
        self, candidate: Tensor, token: Tensor, mass: Tensor, code: Tensor, token_code: Tensor
    ) -> tuple[Tensor, Tensor]:
        """candidate [U, C, d], token [U, S, d], mass [U, S, H], 0 is no token, codes [U, C, L], [U, S, L] -> [U, C, d],
        features [U, C, F]: log odds of each head, log masses of each level and horizon."""
        q, k = F.normalize(self.query(candidate), dim=-1), F.normalize(self.key(token), dim=-1)
        sharp = self.log_sharpness.exp()[:, None, None]
        mixed = (mass @ self.horizon.softmax(-1).T).transpose(1, 2)[:, :, None]  # [U, heads, 1, S]
        log_mass = mixed.clamp_min(1e-20).log()  # finite: users without any token have gradients as well
        score = (q @ k.transpose(1, 2))[:, None] * sharp + log_mass  # [U, heads, C, S]
        empty = (sharp * self.empty[:, None, None]).expand(*score.shape[:-1], 1)
        share = torch.cat([score, empty], -1).softmax(-1)[..., :-1]
        odds = (score.logsumexp(-1) - empty[..., 0]).clamp_min(-20)
        read = share @ self.value(token)[:, None]  # [U, heads, C, d]
        same = [
            code[:, :, None, n] == token_code[:, None, :, n] for n in range(code.shape[2])
        ]  # [U, C, S] each
        masses = [torch.log1p(s.to(mass) @ mass) for s in same]
        return self.out(read.transpose(1, 2).flatten(2)), torch.cat([odds.transpose(1, 2) / 4, *masses], -1)


class AddressedReader(nn.Module):
    """A candidate looks up its own entry among all of the user's items, and its cluster's counter."""

    def __init__(self, clusters: Clusters, horizons: int, d: int) -> None:
        super().__init__()
        self.clusters = clusters  # no parameters: which item is of which cluster
        self.features = 2 * horizons
        self.mlp = nn.Sequential(nn.Linear(self.features, d), nn.ReLU(), nn.Linear(d, d))

    def forward(self, table: Tokens, counters: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """table of all items, counters [U, clusters, H], item ids [U, C] -> [U, C, d], log masses [U, C, 2 H]."""
        at = torch.searchsorted(table.item, item).clamp_max(table.item.shape[1] - 1)
        rows = at[..., None].expand(-1, -1, table.mass.shape[2])
        own = table.mass.gather(1, rows) * (table.item.gather(1, at) == item)[..., None]
        kind = counters.gather(1, self.clusters(item)[..., None].expand_as(rows))
        masses = torch.log1p(torch.cat([own, kind], -1))
        return self.mlp(masses), masses


class Dlrm(nn.Module):
    """Probability logits of C candidates for each of U requests.

    Args:
        surfaces: size of their table.
        content: float32 [items, W], a fixed vector per item.
        dense: dense features per candidate.
        codes: int64 [items, L], where each item lies among all, from fine to coarse.
        horizons: H of the sequence that is attended to, 0 for none.
        addressed: H of the tables that candidates address, 0 for none; ``clusters`` for it.
        near: attend to the recent events as well, not only to their mean.
    """

    def __init__(
        self,
        surfaces: int,
        content: Tensor,
        codes: Tensor,
        dense: int,
        horizons: int = 0,
        addressed: int = 0,
        clusters: Clusters | None = None,
        near: bool = False,
    ) -> None:
        super().__init__()
        d = WIDTH
        self.user, self.item = nn.Embedding(USERS, d), nn.Embedding(len(content), d)
        self.surface = nn.Embedding(surfaces, d)
        for table in (self.user, self.item, self.surface):
            nn.init.normal_(table.weight, std=d**-0.5 / 4)
        self.register_buffer("content", content)
        self.register_buffer("codes", codes)
        self.project = nn.Linear(content.shape[1], d, bias=False)
        nn.init.orthogonal_(self.project.weight)  # what is alike in content is alike to begin with
        self.sequence = SequenceReader(d, horizons, codes.shape[1]) if horizons else None
        self.addressed = AddressedReader(clusters, addressed, d) if addressed and clusters else None
        self.near = SequenceReader(d, 1, codes.shape[1]) if near else None
        readers = [r for r in (self.sequence, self.addressed, self.near) if r is not None]
        known = sum(r.features for r in readers) + bool(horizons or addressed)
        self.bottom = nn.Sequential(nn.Linear(dense + known, 64), nn.ReLU(), nn.Linear(64, d))
        fields = 5 + len(readers)
        self.top = nn.Sequential(nn.Linear(d + fields * (fields - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1))
        self.pairs = torch.triu_indices(fields, fields, 1)

    def embed(self, item: Tensor) -> Tensor:
        return self.item(item) + self.project(self.content[item])

    def forward(self, row: Batch, history: History) -> Tensor:
        """Logits [U, C].

        Args:
            row: columns of :class:`Rows`: user [U], item, item_id, surface [U, C], recent [U, R], dense [U, C, X].
            history: what a summary, or the log, tells of each user.
        """
        candidate = self.embed(row["item"])
        u, c, d = candidate.shape
        there = (row["recent"] > 0).float()[..., None]
        events = self.embed(row["recent"])
        recent = (events * there).sum(1) / there.sum(1).clamp_min(1)
        fields = [candidate, self.surface(row["surface"])]
        fields += [
            x[:, None].expand(u, c, d) for x in (self.user(row["user"] % len(self.user.weight)), recent)
        ]
        dense = [row["dense"]]
        if self.sequence is not None or self.addressed is not None:
            # without a summary there are no tokens, and the model is told so
            dense.append(history.there.float()[:, None, None].expand(u, c, 1))
        if self.sequence is not None:
            item, mass, content, code = history.sequence
            token = self.embed(item) if content is None else self.project(content)
            code = self.codes[item] if code is None else code
            read, known = self.sequence(candidate, token, mass, self.codes[row["item"]], code)
            fields.append(read)
            dense.append(known)
        if self.addressed is not None:
            read, masses = self.addressed(history.table, history.counters, row["item_id"])
            fields.append(read)
            dense.append(masses)
        if self.near is not None:
            codes = self.codes[row["item"]], self.codes[row["recent"]]
            read, known = self.near(candidate, events, there, *codes)
            fields.append(read)
            dense.append(known)
        bottom = self.bottom(torch.cat(dense, -1))
        table = torch.stack([bottom, *fields], 2)  # [U, C, fields, d]
        dots = (table @ table.transpose(2, 3))[..., self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([bottom, dots], -1))[..., 0]
