"""``vista train --log-to``: what TensorBoard and MLflow read back."""

from __future__ import annotations

import sys

import pytest
import typer

from tools import cli, trackers


def test_tensorboard_reads_the_curve_back_and_a_continued_run_replaces_what_it_goes_over_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    to = f"tensorboard:{tmp_path / 'board'}"
    for steps in ([(1, 3.0), (20, 2.0), (40, 9.0)], [(40, 1.0)]):
        with trackers.tracker(to, tmp_path, {}) as row:
            for step, loss in steps:
                row(step, {"loss": loss, "ranking.hr@1": 0.5})
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(1, 3.0), (20, 2.0), (40, 1.0)]
    assert "ranking.hr@1" in board.Tags()["scalars"]


def test_mlflow_reads_the_curve_back_and_a_stopped_run_goes_on_as_the_same(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    kept = tmp_path / "model.training"
    with pytest.raises(KeyboardInterrupt), trackers.tracker(f"mlflow:{uri}", kept, {"seed": "0"}) as row:
        row(1, {"loss": 3.0})
        raise KeyboardInterrupt
    with trackers.tracker(f"mlflow:{uri}", kept, {"seed": "0"}) as row:
        row(20, {"loss": 2.0, "ranking.hr@1": 0.5})
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("vista")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["seed"]) == ("FINISHED", "model", "0")
    assert run.data.metrics["ranking.hr_at_1"] == 0.5
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 3.0),
        (20, 2.0),
    ]


def test_a_tracker_that_fails_on_the_way_is_told_once_and_training_goes_on(tmp_path, capsys):
    with trackers.tracker(f"mlflow:sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, {}) as row:
        for step in (1, 2, 3):
            row(step, {"no\nname": 1.0})
    told = capsys.readouterr().err
    assert told.count("--log-to mlflow:") == 1
    assert "curve.jsonl has all" in told


@pytest.mark.parametrize("to", ["tensorboard", "mlflow:", "wandb:x", "mlflow:foo://bar"])
def test_what_is_no_tracker_is_refused_with_what_was_expected(to, tmp_path):
    with pytest.raises(typer.BadParameter), trackers.tracker(to, tmp_path, {}):
        pass


@pytest.mark.parametrize(
    ("to", "missing"), [("tensorboard:x", "tensorboard"), ("mlflow:sqlite:///x", "mlflow")]
)
def test_a_tracker_that_is_not_installed_is_told_as_the_extra_to_install(to, missing, tmp_path, monkeypatch):
    from tools.extras import told

    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] == missing or name.startswith("torch.utils.tens")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError) as error, trackers.tracker(to, tmp_path, {}):
        pass
    assert f"pip install 'vista-cache[{missing}]'" in told(error.value)


def test_the_version_is_told(capsys):
    import cache_store

    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == f"vista {cache_store.__version__}\n"
