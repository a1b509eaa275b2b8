"""Stores whose every token is known: value = version + user / 1024 in all S x D places, exact in float32."""

from __future__ import annotations

import numpy as np

from cache_store import Group, Publication, RecordSchema, ShardWriter, Store, bucket_of
from cache_store.format.keys import as_users, key_bytes

SMALL = RecordSchema((Group("seeds", 2, 4, "float32"),))
PAGED = RecordSchema((Group("seeds", 24, 32, "float32"), Group("slots", 8, 32, "float32")))
TEXT = RecordSchema((Group("seeds", 2, 4, "float32"),), "string")
PAGED_TEXT = RecordSchema(PAGED.groups, "string")


class KnownStore:
    """A store and the truth about it.

    Attributes:
        truth: generation name to {user: version}, of the whole chain.
        watermarks: generation name to watermark.
    """

    def __init__(self, path, schema=SMALL, num_shards=2, fingerprint="model-a"):
        self.path, self.schema, self.num_shards, self.fingerprint = path, schema, num_shards, fingerprint
        self.admin = Store.create(
            path, user_kind=schema.user_kind, num_shards=num_shards, clock=lambda: 1_000
        )
        self.truth: dict[str, dict] = {}
        self.watermarks: dict[str, int] = {}
        self.runs = 0

    def open(self, **options):
        return Store.open(self.path, **{"clock": lambda: 1_000, **options})

    def name(self, user: int):
        """Id of the user with this number."""
        return user if self.schema.user_kind == "int64" else f"user-{user:05d}"

    def ids(self, users):
        return as_users([self.name(u) for u in users], self.schema.user_kind)

    def tokens(self, users, versions):
        value = np.asarray(versions, np.float32) + np.asarray(users, np.float32) / 1024
        return {
            g.name: np.broadcast_to(value[:, None, None], (len(users), g.tokens, g.width))
            for g in self.schema.groups
        }

    def stage(self, versions, run=None, states=True, summarized_ms=500):
        """Build the shards of a run. ``versions``: user to version, None for a tombstone. Staging folder, receipts."""
        self.runs += 1
        staging = self.admin.stage(run or f"run-{self.runs}")
        users = sorted(versions, key=lambda u: key_bytes(self.name(u)))
        bucket = bucket_of(self.ids(users), self.num_shards)
        receipts = []
        for k in range(self.num_shards):
            with ShardWriter(
                staging, k, self.num_shards, self.schema, states, fingerprint=self.fingerprint
            ) as writer:
                for user in (u for u, b in zip(users, bucket, strict=True) if b == k):
                    version = versions[user]
                    if version is None:
                        writer.add_tombstones(self.ids([user]))
                        continue
                    facts = (
                        np.array([version + 1]),
                        np.array([10 * version + user]),
                        np.array([summarized_ms]),
                    )
                    writer.add(self.ids([user]), self.tokens([user], [version]), *facts)
                    if states:
                        writer.add_states(self.ids([user]), [f"state {user} {version}".encode()])
                receipts.append(writer.finish().as_dict())
        return staging, receipts

    def publish(self, versions, kind="full", watermark=0, line="main", run=None, states=True, **facts):
        """Publish a generation; its name."""
        staging, receipts = self.stage(versions, run, states)
        parent = None
        if kind == "delta":
            parent = facts.pop("parent", None) or self.admin.lines()[line]
        name = self.admin.publish(
            staging,
            receipts,
            Publication(
                line=line,
                kind=kind,
                parent=parent,
                fingerprint=self.fingerprint,
                watermark_ms=watermark,
                **{"expected": len(versions), "published_ms": 900, **facts},
            ),
        ).generation
        before = self.truth[parent] if kind == "delta" else {}
        merged = {**before, **versions}
        self.truth[name] = {u: v for u, v in merged.items() if v is not None}
        self.watermarks[name] = watermark
        return name

    def check(self, found, users, truth):
        """Assert that a lookup of ``users`` says exactly what ``truth`` says."""
        assert found.tokens.shape == (len(users), self.schema.tokens, self.schema.width)
        for row, user in enumerate(users):
            version = truth.get(user)
            if version is None:
                assert found.status[row] == 2, user
                assert not found.tokens[row].any() and found.event_count[row] == 0 == found.last_event_ms[row]
            else:
                assert found.status[row] in (0, 1), (user, found.status[row])
                assert (found.tokens[row] == np.float32(version + user / 1024)).all()
                assert found.event_count[row] == version + 1
                assert found.last_event_ms[row] == 10 * version + user

    def bytes_left(self):
        """Path and content of every file of the store."""
        return [(p, p.read_bytes()) for p in sorted(self.path.rglob("*")) if p.is_file()]
