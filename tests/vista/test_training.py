"""Training: same seed same weights, killed and resumed same weights, two processes one gradient, no label
leaks."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig
from vista.data.events import Events
from vista.errors import BundleError, ConfigError, DataError
from vista.model import VistaModel
from vista.training import losses
from vista.training.config import TrainingConfig
from vista.training.evaluate import evaluate_model, score
from vista.training.examples import Batch, ExampleConfig, PopularItems, collate
from vista.training.loader import Arrays, LoaderConfig, visit_stream
from vista.training.objective import Objective, ObjectiveConfig
from vista.training.survey import survey
from vista.training.train import train_source
from vista.training.trainer import Trainer, pick_device

MODEL = ModelConfig(
    width=16,
    actions=("view", "buy"),
    embedding=EmbeddingConfig(rows=64, surfaces=4),
    slots=SlotConfig(buckets=32, clusters=0),
    summarizer=SummarizerConfig(layers=1, seeds=4, chunk=8),
    ranker=RankerConfig(layers=1, recent=4),
)
EXAMPLES = ExampleConfig(negatives=6, lag_jitter_events=3, slates_per_visit=4, max_history=64, recent_pool=8)
CONFIG = TrainingConfig(
    model=MODEL,
    examples=EXAMPLES,
    loader=LoaderConfig(slates=48, shuffle_visits=64),
    objective=ObjectiveConfig(random_negatives=16),
    max_steps=8,
    warmup=2,
    checkpoint_every=3,
    log_every=1,
    validation_slates=100,
    device="cpu",
)


def loyal(users: int = 60, seed: int = 0) -> Arrays:
    """Users who stay with a few items of their own: easy to learn from their history."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(15, 50, users)
    own = rng.integers(0, 40, (users, 3))
    user = np.repeat(np.arange(users), lengths)
    n = int(lengths.sum())
    time = np.concatenate([np.sort(rng.integers(0, 10**9, k)) for k in lengths])
    item = own[user, rng.integers(0, 3, n)]
    return Arrays(
        np.arange(users), Events.of(lengths, item=item, action=1 + (item % 2) * 2, time=time).sorted(), of=4
    )


def one_batch(source: Arrays, users: np.ndarray | None = None) -> Batch:
    visits = list(visit_stream(source, source.buckets(), EXAMPLES, 8, popular(source), (0,)))
    if users is not None:
        visits = [v for v in visits if v.owner in set(users.tolist())]
    return collate(visits[:24] if users is None else visits, 4, 8)


def popular(source: Arrays) -> PopularItems:
    return survey(source, 0.0).popular()


def weights(path) -> dict[str, torch.Tensor]:
    return bundle.load(path).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_the_same_seed_gives_the_same_bundle_and_another_seed_another(tmp_path):
    marks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = dataclasses.replace(CONFIG, seed=seed, max_steps=4)
        marks.append(bundle.load(train_source(config, loyal(), tmp_path / name)).fingerprint)
    assert marks[0] == marks[1] != marks[2]


def test_a_run_killed_at_any_step_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole = train_source(CONFIG, loyal(), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(at: int):
        def on_step(step: int, _: dict[str, float]) -> None:
            if step == at:
                raise Killed

        return on_step

    for at in (4, 7):
        with pytest.raises(Killed):
            train_source(CONFIG, loyal(), tmp_path / "killed", on_step=kill(at))
    assert not (tmp_path / "killed").exists()
    resumed = train_source(CONFIG, loyal(), tmp_path / "killed")
    assert same(weights(whole), weights(resumed))

    def curve(name: str) -> list[dict]:
        rows = [
            json.loads(r) for r in (tmp_path / f"{name}.training" / "curve.jsonl").read_text().splitlines()
        ]
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert curve("whole") == curve("killed")
    assert [r["step"] for r in curve("whole") if "loss" in r] == list(range(1, 9))


def test_a_checkpoint_of_another_configuration_is_refused_with_the_remedy(tmp_path):
    def stop(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_source(CONFIG, loyal(), tmp_path / "b", on_step=stop)
    with pytest.raises(ConfigError, match="config.*--model"):
        train_source(dataclasses.replace(CONFIG, lr=1e-4), loyal(), tmp_path / "b")
    with pytest.raises(ConfigError, match="catalogue"):
        train_source(CONFIG, loyal(seed=1), tmp_path / "b")


def test_training_learns_what_an_untrained_model_does_not_know(tmp_path):
    source = loyal(users=120)
    config = dataclasses.replace(CONFIG, max_steps=150, checkpoint_every=0, lr=5e-3, lr_embedding=2e-2)
    trained = bundle.load(train_source(config, source, tmp_path / "b"))
    rows = [json.loads(r) for r in (tmp_path / "b.training" / "curve.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    catalogue = survey(source, config.validation_share, config.seed)
    before = evaluate_model(VistaModel(MODEL).eval(), source, EXAMPLES, catalogue, slates=200).flat()
    after = evaluate_model(trained.model, source, EXAMPLES, catalogue, slates=200).flat()
    assert after["retrieval.mrr"] > before["retrieval.mrr"]
    # Three items are as likely: one of them first, at best, gives (1 + 1/2 + 1/3) / 3 = .61 to a perfect
    # model.
    assert after["ranking.mrr"] > 0.57 and after["action.buy.auc"] > 0.8
    assert after["action.buy.calibration_error"] < before["action.buy.calibration_error"] / 2
    assert trained.meta.metrics["ranking.mrr"] == pytest.approx(after["ranking.mrr"], abs=0.1)


def test_law_4_neither_the_own_label_nor_a_masked_action_reaches_the_logits():
    source = loyal()
    model = VistaModel(MODEL).eval()
    batch = one_batch(source)
    masked = np.ones(len(batch.recent), bool)

    def logits(b: Batch) -> tuple[torch.Tensor, ...]:
        tokens = model.summarizer.prefixes(b.events, b.cut, b.user_of)
        ctx = model.ranker.context(
            tokens, None, b.recent, b.now_ms, b.last_event_ms, masked=masked, full=True
        )
        ranked = model.ranker.rank(ctx, torch.from_numpy(b.item), b.offsets)
        return ranked, model.ranker.past(ctx, b.recent)[1], ctx.query

    with torch.no_grad():
        expected = logits(batch)
        recent = Events(batch.recent.offsets, **{**batch.recent.columns, "action": 3 - batch.recent.action})
        changed = dataclasses.replace(batch, action=1 - batch.action, recent=recent)
        got = logits(changed)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


def test_the_rate_of_a_draw_is_taken_from_the_logits_in_the_loss_and_in_evaluation():
    batch, model = one_batch(loyal()), VistaModel(MODEL).eval()
    assert batch.log_rate.std() > 0.1
    objective = Objective(ObjectiveConfig(mask_actions=0.0), np.arange(40))
    tokens = model.summarizer.prefixes(batch.events, batch.cut, batch.user_of)
    ctx = model.ranker.context(tokens, None, batch.recent, batch.now_ms, batch.last_event_ms)
    logits = model.ranker.rank(ctx, batch.item, batch.offsets) - torch.from_numpy(batch.log_rate)[:, None]
    loss = losses.action_bce(logits, torch.from_numpy(batch.action), torch.ones(2))
    torch.testing.assert_close(objective(model, batch, 0)["action"], loss)
    flat = dataclasses.replace(batch, log_rate=np.zeros_like(batch.log_rate))
    told, plain = (score(model, iter([b]), np.arange(40)).probability for b in (batch, flat))
    odds = torch.logit(torch.from_numpy(plain)) - torch.logit(torch.from_numpy(told))
    np.testing.assert_allclose(odds, np.repeat(batch.log_rate[:, None], 2, 1), rtol=1e-3, atol=1e-3)


def test_law_10_events_after_the_slate_do_not_change_its_loss():
    source = loyal()
    batch = one_batch(source)
    model, objective = VistaModel(MODEL), Objective(ObjectiveConfig(random_negatives=0), np.arange(40))
    window = np.repeat(np.arange(batch.events.users), batch.events.lengths)
    last = np.zeros(batch.events.users, np.int64)
    np.maximum.at(last, batch.user_of, batch.cut)
    beyond = np.arange(len(batch.events)) - batch.events.offsets[window] >= last[window]
    assert beyond.any()
    item = np.where(beyond, 39 - batch.events.item, batch.events.item)
    changed = dataclasses.replace(
        batch, events=Events(batch.events.offsets, **{**batch.events.columns, "item": item})
    )
    a = objective(model, batch, 0)["loss"]
    b = Objective(ObjectiveConfig(random_negatives=0), np.arange(40))(model, changed, 0)["loss"]
    assert torch.equal(a, b)


def _gradients(batch: Batch, mask_same_user: bool) -> dict[str, torch.Tensor]:
    config = dataclasses.replace(
        CONFIG,
        objective=ObjectiveConfig(random_negatives=8, reconstruction=0.0, mask_same_user=mask_same_user),
        clip=1e9,
    )
    trainer = Trainer(config, VistaModel(MODEL), np.arange(40), torch.device("cpu"))
    trainer.step(batch, 0)
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def _worker(rank: int, address: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    source = loyal(users=16)
    # Uneven shares, so that a mean of means would be wrong.
    batch = one_batch(source, np.arange(5) if rank == 0 else np.arange(5, 16))
    found = [_gradients(batch, mask) for mask in (True, False)]
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    mp.spawn(_worker, (str(tmp_path / "meet"), str(tmp_path / "grad.pt")), nprocs=2)
    source = loyal(users=16)
    stream = list(visit_stream(source, source.buckets(), EXAMPLES, 8, popular(source), (0,)))
    joined = collate([v for v in stream if v.owner < 5] + [v for v in stream if v.owner >= 5], 4, 8)
    for mask, theirs in zip((True, False), torch.load(tmp_path / "grad.pt"), strict=True):
        ours = _gradients(joined, mask)
        for name, grad in theirs.items():
            expected = ours.get(name, torch.zeros_like(grad))
            torch.testing.assert_close(
                grad, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_an_existing_bundle_is_not_trained_over(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match="--model"):
        train_source(CONFIG, loyal(), tmp_path / "b")


def test_no_events_and_no_examples_are_named_errors(tmp_path):
    with pytest.raises(DataError, match="vista ingest"):
        train_source(CONFIG, Arrays(np.zeros(0, np.int64), Events.empty()), tmp_path / "a")
    strict = dataclasses.replace(CONFIG, examples=dataclasses.replace(EXAMPLES, min_history=10_000))
    with pytest.raises(DataError, match="min_history"):
        train_source(strict, loyal(), tmp_path / "b")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = Trainer(CONFIG, VistaModel(MODEL), np.arange(40), torch.device("cpu"))
    with torch.no_grad():
        trainer.model.items.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="lower lr"):
        trainer.step(one_batch(loyal()), 0)


def test_limits_weights_and_devices_out_of_range_are_refused_by_name():
    for change in ({"max_steps": 0}, {"lr": 0.0}, {"validation_share": 1.0}, {"precision": "float16"}):
        with pytest.raises(ConfigError, match=f"training.*{next(iter(change))}"):
            dataclasses.replace(CONFIG, **change)
    with pytest.raises(ConfigError, match="objective.actions"):
        dataclasses.replace(CONFIG, objective=ObjectiveConfig(actions=(1.0,)))
    with pytest.raises(ConfigError, match="device"):
        pick_device("tpu7")


def test_a_time_limit_ends_the_run_with_a_bundle(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=0, max_seconds=1e-6, checkpoint_every=0)
    assert bundle.load(train_source(config, loyal(), tmp_path / "b")).meta.training["step"] == 1


def test_bfloat16_and_float32_start_from_nearly_the_same_loss():
    batch = one_batch(loyal())
    found = []
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, precision=precision)
        trainer = Trainer(config, VistaModel(MODEL), np.arange(40), torch.device("cpu"))
        found.append(trainer.step(batch, 0)["loss"])
        assert all(p.dtype == torch.float32 for p in trainer.parameters)
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_shuffling_across_buckets_loses_nothing_against_fully_shuffled_rows(tmp_path):
    source = dataclasses.replace(loyal(users=160), of=8)
    found = {}
    for name, held in (("bucketed", 64), ("full", 1_000_000)):
        config = dataclasses.replace(
            CONFIG,
            loader=LoaderConfig(slates=48, shuffle_visits=held),
            max_steps=120,
            checkpoint_every=0,
            lr=5e-3,
            lr_embedding=2e-2,
            validation_slates=400,
        )
        found[name] = bundle.load(train_source(config, source, tmp_path / name)).meta.metrics
    assert found["bucketed"]["ranking.mrr"] > found["full"]["ranking.mrr"] - 0.03
    assert found["bucketed"]["retrieval.mrr"] > found["full"]["retrieval.mrr"] - 0.06
