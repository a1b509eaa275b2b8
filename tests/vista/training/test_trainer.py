"""A step of training: rows of the item tables that were touched, and compiled layers, against the plain step."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.vista.training.test_training import CONFIG, MODEL, loyal, one_batch
from vista.model import VistaModel
from vista.training.compiled import compile_layers
from vista.training.objective import ObjectiveConfig
from vista.training.train import resume
from vista.training.trainer import Trainer

SAME_ROWS = dataclasses.replace(CONFIG, objective=ObjectiveConfig(random_negatives=0), clip=0.05, warmup=0)


def trainer(**changes) -> Trainer:
    model = dataclasses.replace(MODEL, embedding=dataclasses.replace(MODEL.embedding, rows=512))
    config = dataclasses.replace(SAME_ROWS, model=model, **changes)
    return Trainer(config, VistaModel(model), np.arange(40), torch.device("cpu"))


def test_updates_of_touched_rows_are_those_of_all_rows_where_the_same_are_touched():
    batch = one_batch(loyal())
    every, touched = trainer(), trainer(embedding_update="touched")
    start = every.model.items.weight.detach().clone()
    clear = torch.ones_like(start, dtype=torch.bool)
    for _ in range(4):
        a, b = every.step(batch, 0), touched.step(batch, 0)
        assert a["gradient_norm"] > SAME_ROWS.clip  # so gradients are scaled, rows' as well
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
        wanted, found = (t.model.items.weight.grad.to_dense() for t in (every, touched))
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-5)
        clear &= wanted.abs() > 1e-5  # of less, an update is the sign of what rounding left
    rows = (every.model.items.weight != start).any(1)
    assert 0 < int(rows.sum()) < len(start)
    assert torch.equal(touched.model.items.weight[~rows], start[~rows])
    assert int(clear.sum()) > 100
    moved, wanted = (t.model.items.weight[clear] - start[clear] for t in (touched, every))
    torch.testing.assert_close(moved, wanted, rtol=0.02, atol=2e-4)


def test_a_run_of_touched_rows_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path):
    batch = one_batch(loyal())
    whole, first, second = (trainer(embedding_update="touched") for _ in range(3))
    for _ in range(4):
        whole.step(batch, 0)
    for _ in range(2):
        first.step(batch, 0)
    run = {"config": {}}
    torch.save({**first.state(), "run": run}, tmp_path / "checkpoint.pt")
    second.restore(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for _ in range(2):
        second.step(batch, 0)
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_checkpoint_of_before_a_field_goes_on_where_the_field_has_its_default(tmp_path):
    from vista.config import to_dict

    first, second = trainer(), trainer()
    first.step(one_batch(loyal()), 0)
    run = {"config": to_dict(first.config), "snapshot": None}
    before = copy.deepcopy(run)
    for name in ("embedding_update", "compile"):
        del before["config"][name]
    torch.save({**first.state(), "run": before}, tmp_path / "checkpoint.pt")
    resume(second, tmp_path / "checkpoint.pt", run)
    assert second.position.step == 1


def test_compiled_layers_give_the_losses_of_plain_ones():
    batch = one_batch(loyal())
    plain, fast = trainer(), trainer()
    assert compile_layers(fast.model, backend="eager") is None
    for _ in range(2):
        assert fast.step(batch, 0)["loss"] == pytest.approx(plain.step(batch, 0)["loss"], rel=1e-4)


def test_where_layers_do_not_compile_training_goes_on_without_and_says_why():
    plain = trainer()
    with pytest.warns(RuntimeWarning, match="without torch.compile"):
        told = compile_layers(plain.model, backend="no such compiler")
    assert told is not None and "no such compiler" in told
    assert np.isfinite(plain.step(one_batch(loyal()), 0)["loss"])
