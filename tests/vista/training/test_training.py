"""Training: same seed same weights, killed and resumed same weights, two processes one gradient, no label
leaks."""

from __future__ import annotations

import dataclasses
import json
import pickle
import signal

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vista import bundle
from vista.config import EmbeddingConfig, ModelConfig, RankerConfig, SlotConfig, SummarizerConfig, TokenConfig
from vista.data.events import Events
from vista.errors import BundleError, ConfigError, DataError
from vista.model import VistaModel
from vista.training import losses
from vista.training.batches import Batch, collate
from vista.training.config import EPOCHS, TrainingConfig
from vista.training.evaluate import evaluate_model, score
from vista.training.examples import ExampleConfig, PopularItems
from vista.training.loader import Arrays, Loader, LoaderConfig, Part, visit_stream
from vista.training.objective import Objective, ObjectiveConfig
from vista.training.survey import survey
from vista.training.train import share_done, train_source
from vista.training.trainer import Position, Trainer, pick_device

MODEL = ModelConfig(
    width=16,
    actions=("view", "buy"),
    embedding=EmbeddingConfig(rows=64, surfaces=4),
    tokens=TokenConfig(items=0),
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


def _gradients(batch: Batch, mask_same_user: bool, update: str = "all") -> dict[str, torch.Tensor]:
    config = dataclasses.replace(
        CONFIG,
        embedding_update=update,
        objective=ObjectiveConfig(random_negatives=8, reconstruction=0.0, mask_same_user=mask_same_user),
        clip=1e9,
    )
    trainer = Trainer(config, VistaModel(MODEL), np.arange(40), torch.device("cpu"))
    loss = torch.tensor(trainer.step(batch, 0)["loss"])
    grads = {n: p.grad.to_dense() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return {**grads, "the loss itself": loss}


HOW = ((True, "all"), (False, "all"), (True, "touched"))


def _worker(rank: int, address: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    source = loyal(users=16)
    # Uneven shares, so that a mean of means would be wrong.
    batch = one_batch(source, np.arange(5) if rank == 0 else np.arange(5, 16))
    found = [_gradients(batch, *how) for how in HOW]
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one_with_both_batches(tmp_path):
    mp.spawn(_worker, (str(tmp_path / "meet"), str(tmp_path / "grad.pt")), nprocs=2)
    source = loyal(users=16)
    stream = list(visit_stream(source, source.buckets(), EXAMPLES, 8, popular(source), (0,)))
    joined = collate([v for v in stream if v.owner < 5] + [v for v in stream if v.owner >= 5], 4, 8)
    for how, theirs in zip(HOW, torch.load(tmp_path / "grad.pt"), strict=True):
        ours = _gradients(joined, *how)
        for name, grad in theirs.items():
            expected = ours.get(name, torch.zeros_like(grad))
            torch.testing.assert_close(
                grad, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_a_checkpoint_of_its_step_and_the_same_call_ends_with_the_same_weights(
    tmp_path, signal_
):
    whole = train_source(CONFIG, loyal(), tmp_path / "whole")

    before = signal.getsignal(signal.SIGINT)

    def interrupt(step: int, _: dict[str, float]) -> None:
        if step == 5:
            signal.raise_signal(signal_)

    with pytest.raises((KeyboardInterrupt, SystemExit)) as stopped:
        train_source(CONFIG, loyal(), tmp_path / "stopped", on_step=interrupt)
    if signal_ == signal.SIGINT:
        assert "after step 5" in str(stopped.value)
    else:
        assert stopped.value.code == 143
    kept = torch.load(tmp_path / "stopped.training" / "checkpoint.pt", weights_only=True)
    assert kept["positions"][0]["step"] == 5
    assert signal.getsignal(signal.SIGINT) is before
    assert same(weights(whole), weights(train_source(CONFIG, loyal(), tmp_path / "stopped")))


def test_a_second_training_of_the_same_bundle_is_told_and_the_first_goes_on(tmp_path):
    told = []

    def meanwhile(step: int, _: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt
        with pytest.raises(BundleError, match="expected no training under way.*--model") as refused:
            train_source(CONFIG, loyal(), tmp_path / "b")
        told.append(refused)

    with pytest.raises(KeyboardInterrupt):
        train_source(CONFIG, loyal(), tmp_path / "b", on_step=meanwhile)
    assert len(told) == 1


def test_a_damaged_checkpoint_is_told_with_the_remedy_and_left_where_it_is(tmp_path):
    def stop(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_source(CONFIG, loyal(), tmp_path / "b", on_step=stop)
    checkpoint = tmp_path / "b.training" / "checkpoint.pt"
    good = checkpoint.read_bytes()
    state = torch.load(checkpoint, weights_only=True)

    def saved(value: object) -> bytes:
        torch.save(value, tmp_path / "x")
        return (tmp_path / "x").read_bytes()

    damaged = (
        b"", b"junk", good[: len(good) // 2], good[:-1], pickle.dumps({"run": print}), saved([1]), saved({"run": 3}),
        saved({**state, "positions": []}), saved({**state, "model": {}}), saved({**state, "optimizer": {"a": 1}}),
    )  # fmt: skip
    for content in damaged:
        checkpoint.write_bytes(content)
        with pytest.raises(ConfigError, match=r"checkpoint.*delete.*vista train"):
            train_source(CONFIG, loyal(), tmp_path / "b")
        assert checkpoint.read_bytes() == content


def test_content_width_without_vectors_is_refused_and_vectors_reach_encoder_and_clusters(tmp_path):
    model = dataclasses.replace(
        MODEL,
        embedding=EmbeddingConfig(rows=64, content_width=3),
        tokens=TokenConfig(items=0),
        slots=SlotConfig(buckets=32, clusters=5),
    )
    config = dataclasses.replace(CONFIG, model=model, max_steps=2)
    with pytest.raises(ConfigError, match="content_width.*none"):
        train_source(config, loyal(), tmp_path / "a")
    content = np.arange(40), np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with pytest.raises(ConfigError, match="content_width: expected 3"):
        train_source(CONFIG, loyal(), tmp_path / "a", content=content)
    loaded = bundle.load(train_source(config, loyal(), tmp_path / "a", content=content)).model
    torch.testing.assert_close(loaded.items.content.values, torch.from_numpy(content[1]))
    assert len(loaded.slots.cluster_of) == 40


def test_without_limits_a_run_takes_whole_epochs_and_the_rate_falls_to_a_tenth_at_their_end(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=0, max_epochs=2, warmup=0)
    assert TrainingConfig().epochs == EPOCHS and config.epochs == 2 and CONFIG.epochs == 0
    shares: list[float] = []
    notes: list[str] = []
    whole = bundle.load(train_source(config, loyal(), tmp_path / "a", note=notes.append)).meta.training
    assert [n.split()[0] for n in notes[:2]] == ["reading", "judging"], (
        "what takes long without a step is said"
    )
    assert whole["epoch"] == 1 and whole["step"] == whole["taken"] + whole["batches"]
    at = Position(step=whole["step"] - 1, epoch=1, taken=whole["taken"] - 1, batches=whole["batches"])
    shares = [share_done(config, at, 99.0), share_done(config, Position(), 99.0)]
    assert shares[0] > 0.8 and shares[1] == 0.0
    trainer = Trainer(config, VistaModel(MODEL), np.arange(40), torch.device("cpu"))
    assert trainer.rate(9, 0.0) == 1.0 and trainer.rate(9, 1.0) == pytest.approx(0.1)


def test_each_line_of_the_curve_is_handed_on_with_its_step(tmp_path):
    rows: list[tuple[int, dict[str, float]]] = []
    train_source(CONFIG, loyal(), tmp_path / "a", on_row=lambda step, values: rows.append((step, values)))
    kept = [json.loads(line) for line in (tmp_path / "a.training/curve.jsonl").read_text().splitlines()]
    assert [step for step, _ in rows] == [row["step"] for row in kept]
    assert all("loss" in values for _, values in rows[:-1])
    assert all(row[name] == pytest.approx(v, rel=1e-5) for row, (_, vs) in zip(kept, rows, strict=True)
               for name, v in vs.items())  # fmt: skip


def test_kept_unengaged_slates_weigh_for_those_left_out():
    """The loss over a tenth of the unengaged slates is, in the mean, that over all of them."""
    rng = np.random.default_rng(0)
    lengths, shown = np.full(40, 30), np.full(40, 60)
    events = Events.of(lengths, item=rng.integers(0, 40, 1200), action=np.ones(1200, np.int64),
                       time=np.tile(np.arange(30) * 1000, 40))  # fmt: skip
    seen = Events.of(shown, item=rng.integers(0, 40, 2400), action=(rng.random(2400) < 0.1).astype(np.int64),
                     time=np.tile(np.repeat(np.arange(20) * 1500, 3), 40),
                     request=np.tile(np.repeat(np.arange(1, 21), 3), 40))  # fmt: skip
    source = Arrays(np.arange(40), events, seen)
    sums = []
    for keep, seeds in ((1.0, 1), (0.2, 30)):
        config = dataclasses.replace(EXAMPLES, keep_unengaged=keep)
        for seed in range(seeds):
            visits = list(visit_stream(source, [0], config, 8, popular(source), (seed,)))
            batch = collate(visits, 4, 8)
            w = batch.weights(keep)
            sums.append((w.sum(), float(w @ (batch.action != 0))))
    (whole, positives), kept = sums[0], np.array(sums[1:])
    assert kept[:, 1] == pytest.approx(positives)
    assert kept[:, 0].mean() == pytest.approx(whole, rel=0.05) and kept[:, 0].std() > 0


def test_negatives_come_from_the_training_period_only():
    source, split = loyal(), 9 * 10**8
    columns = source.events.columns
    item = np.where(columns["time"] >= split, 1000, columns["item"])
    late = dataclasses.replace(source, events=Events(source.events.offsets, **{**columns, "item": item}))
    catalogue = survey(late, 0.1, split_ms=split)
    assert 1000 in catalogue.item and 1000 not in catalogue.early_items()
    assert set(catalogue.popular().items) == set(catalogue.early_items())


def test_clusters_are_fitted_before_the_requests_that_training_asks_about(tmp_path):
    source = loyal(users=120)
    model = dataclasses.replace(MODEL, tokens=TokenConfig(items=0), slots=SlotConfig(buckets=32, clusters=8))
    catalogue = survey(source, 0.1, fit_share=0.5)
    made = VistaModel(model)
    assert catalogue.fit(made)
    first = np.unique(catalogue.sample.item[catalogue.sample.time < catalogue.fit_ms])
    assert set(made.slots.cluster_of.ids.tolist()) <= set(first.tolist())
    period = Part(after_ms=catalogue.fit_ms, before_ms=catalogue.split_ms)
    loader = Loader(source, EXAMPLES, CONFIG.loader, 4, catalogue.popular(), part=period)
    times = np.concatenate([b.now_ms for b in loader])
    assert len(times) and times.min() >= catalogue.fit_ms and times.max() < catalogue.split_ms
    asked = catalogue.slates(EXAMPLES, after_fit=True)
    assert asked == pytest.approx(len(times), rel=0.05)
    catalogue.refit(made)
    assert len(made.slots.cluster_of.ids) >= len(first)


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
    for change in ({"max_steps": -1}, {"lr": 0.0}, {"validation_share": 1.0}, {"precision": "float16"}):
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
