"""Place tokens: where among the items a history lies, in seed tokens that a candidate can match.

``S`` learned places among the item vectors; training starts them at the centres of what was touched
(:meth:`PlaceEncoder.start`). Every event spreads over them by a sharp softmax *over places* (one of the two steps of
SequenceO1, arXiv 2609.08443), and a place sums what falls on it: item vectors and a mass, both decaying with the
place's half-life. Sums only, so they are exact to resume, and nothing that is kept depends on the chunk.

Half-lives (``summarizer.half_lives_events``) are dealt out over the places in equal shares, in order; places of one
half-life share each event among them. A place's direction fades with its mass: what a person dwells in now must not
be blurred by what the same place held a year ago (near positives of the generated set, by the raw density: MRR .61
with one direction for all time, .74 with one that fades).

A token of width D is ``[ direction of the place's item vectors, D - 1 floats, unit length | its mass, coded ]``, zeros
where nothing fell. Stage 2 reads them by :class:`PlaceRead`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vista.config import ModelConfig
from vista.embedding.encoders import EventEncoder
from vista.ops.crossing import Plan
from vista.ops.qla import Step, qla_states
from vista.stage1.clusters import kmeans
from vista.stage1.groups import SeedEncoder

_SHARPNESS = 48.0
"""At the start: an event that is .1 of cosine nearer to one place than to another falls on it 120 times as much."""
_LEAST = 2.0**-12
_OCTAVES = 24.0
_NOTHING = 1e-6


def horizons(config: ModelConfig) -> list[tuple[int, float]]:
    """Places of one half-life, as (number of places, half-life in events), in order."""
    s = config.summarizer
    lives = [s.half_lives_events[i * len(s.half_lives_events) // s.seeds] for i in range(s.seeds)]
    return [(lives.count(life), life) for life in dict.fromkeys(lives)]


def coded(mass: Tensor) -> Tensor:
    """Masses as numbers of the size of a direction's: logarithms above 2^-12; 0 stays 0."""
    return torch.log2(1 + mass / _LEAST) / _OCTAVES


def decoded(code: Tensor) -> Tensor:
    """Inverse of :func:`coded`."""
    return (torch.exp2(code.clamp_min(0) * _OCTAVES) - 1) * _LEAST


class PlaceEncoder(SeedEncoder):
    """Places; see the module's docstring.

    Attributes:
        state_shape: (S, D + 1): sums of item vectors, and masses.
    """

    log_decay: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.horizons = horizons(config)
        self.seeds = nn.Parameter(F.normalize(torch.randn(config.summarizer.seeds, config.width), dim=-1))
        self.log_sharpness = nn.Parameter(torch.tensor(_SHARPNESS).log())
        self.state_shape = (config.summarizer.seeds, config.width + 1)
        decay = torch.tensor([-math.log(2.0) / life for _, life in self.horizons], dtype=torch.float64)
        self.register_buffer("log_decay", decay, persistent=False)

    def rows(self, events: EventEncoder, item: Tensor, *others: Tensor) -> Tensor:
        """Unit vectors of their items, [N, D]. Candidates have nothing else."""
        return events.items.vector(item)

    def forward(
        self, x: Tensor, step: Step, carry: Tensor, reads: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`vista.stage1.groups.SeedEncoder`; states float32 [m, S, D + 1]."""
        value = torch.cat([x, x.new_ones(len(x), 1)], -1).unsqueeze(1)
        score = x @ F.normalize(self.seeds, dim=-1).T * self.log_sharpness.exp()
        sizes = [size for size, _ in self.horizons]
        states = [
            qla_states(part.softmax(-1).unsqueeze(1), value, step, before[None], decay, math.isinf(life))[0]
            for part, before, decay, (_, life) in zip(
                score.split(sizes, -1),
                carry.split(sizes, 1),
                self.log_decay.split(1),
                self.horizons,
                strict=True,
            )
        ]
        found = torch.cat(states, 1)
        read = found[reads]
        direction = F.normalize(read[..., :-2], dim=-1)
        return torch.cat([direction, coded(read[..., -1:])], -1), found[kept]

    @torch.no_grad()
    def start(self, x: Tensor, seed: int = 0) -> None:
        """Put the places where events are: spherical k-means of a sample of item vectors [N, D], per group."""
        vectors = F.normalize(x.float(), dim=-1).cpu()
        for places, (size, _) in zip(
            self.seeds.split([n for n, _ in self.horizons]), self.horizons, strict=True
        ):
            nearest = torch.from_numpy(kmeans(vectors.numpy(), size, seed)).long()
            centres = torch.zeros(size, x.shape[-1]).index_add_(0, nearest, vectors)
            found = torch.bincount(nearest, minlength=size) > 0
            places[found] = F.normalize(centres[found], dim=-1).to(places)


class PlaceRead(nn.Module):
    """What a candidate finds near it: log odds per group of places and sharpness.

    With a sharpness b and an empty place that scores b e::

        odds = sum over places of mass * exp(b (cosine(candidate, direction) - e))

    which is what softmax attention to the raw events would weigh them with, were those of a place all at their mean.
    Cosines are taken after a learned map that starts as the identity.
    """

    SHARPNESS = (12.0, 30.0)
    EMPTY = 0.8

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = [size for size, _ in horizons(config)]
        self.match = nn.Parameter(torch.eye(config.width - 1))
        self.log_sharpness = nn.Parameter(torch.tensor(self.SHARPNESS).log())
        self.empty = nn.Parameter(torch.full((len(self.SHARPNESS),), self.EMPTY))
        self.features = len(self.SHARPNESS) * len(self.sizes)

    def forward(self, vector: Tensor, tokens: Tensor, plan: Plan) -> Tensor:
        """Log odds [B, F]; vector [B, D] unit item vectors, tokens [U, S, D]."""
        x = F.normalize(vector[:, :-1] @ self.match, dim=-1)
        keys = F.normalize(tokens[..., :-1] @ self.match, dim=-1)
        mass = decoded(tokens[..., -1:])
        sharpness = self.log_sharpness.exp()

        def near(rows: Tensor, keys: Tensor, mass: Tensor) -> Tensor:
            cosine = rows @ keys.mT  # [G, M, S]
            for_each = [
                torch.exp(b * (part - e)) @ n
                for b, e in zip(sharpness, self.empty, strict=True)
                for part, n in zip(cosine.split(self.sizes, -1), mass.split(self.sizes, 1), strict=True)
            ]
            return torch.cat(for_each, -1)

        return torch.log(plan.each(near, [x], [keys, mass]) + _NOTHING)
