"""``vista train --log-to``: every line of the loss curve to TensorBoard or MLflow as well.

Training does not depend on a tracker: one that fails on the way is told once and left; curve.jsonl has every line.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from tools import console

Row = Callable[[int, dict[str, float]], None]
KINDS = "tensorboard:DIR or mlflow:URI (http://HOST:PORT, sqlite:///FILE)"


@contextlib.contextmanager
def tracker(to: str, kept: Path, facts: dict[str, str]) -> Iterator[Row]:
    """Yields what takes the curve's lines.

    Args:
        to: as ``--log-to`` has it.
        kept: the training run's folder; an MLflow run that is continued is found by it.
        facts: what the run was asked for.

    Raises:
        typer.BadParameter: another kind, or nothing that answers there. ModuleNotFoundError: an extra is missing.
    """
    kind, _, where = to.partition(":")
    if kind not in ("tensorboard", "mlflow") or not where:
        raise typer.BadParameter(f"expected {KINDS}, found {to!r}", param_hint="--log-to")
    begin = _tensorboard(where) if kind == "tensorboard" else _mlflow(where, kept, facts)
    add: Row | None = None
    lost = False

    def row(step: int, values: dict[str, float]) -> None:
        nonlocal add, lost
        if lost:
            return
        try:
            add = add or done.enter_context(begin(step))
            add(step, values)
        except Exception as error:
            lost = True
            console.note(
                f"--log-to {to}: {type(error).__name__}: {error}; training goes on, and {kept}/curve.jsonl has all"
            )

    with contextlib.ExitStack() as done:
        yield row


def _tensorboard(folder: str) -> Callable[[int], contextlib.AbstractContextManager[Row]]:
    from torch.utils.tensorboard import SummaryWriter

    Path(folder).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def begin(step: int) -> Iterator[Row]:
        with SummaryWriter(folder, purge_step=step) as writer:

            def add(step: int, values: dict[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            yield add

    return begin


def _mlflow(
    uri: str, kept: Path, facts: dict[str, str]
) -> Callable[[int], contextlib.AbstractContextManager[Row]]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take four minutes
    try:
        client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vista")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
    except MlflowException as error:
        raise typer.BadParameter(f"nothing to log to at {uri} ({error})", param_hint="--log-to") from error

    @contextlib.contextmanager
    def begin(step: int) -> Iterator[Row]:
        """Of a run; one that goes on from a checkpoint goes on there as well."""
        tag, path = "vista.training", str(kept.absolute())
        before = client.search_runs(
            [experiment], f"tags.`{tag}` = '{path}' and attributes.status != 'FINISHED'"
        )
        if before and step > 1:
            run = before[0].info.run_id
            client.update_run(run, "RUNNING")
        else:
            run = client.create_run(experiment, run_name=kept.stem, tags={tag: path}).info.run_id
            client.log_batch(run, params=[Param(name, value) for name, value in facts.items()])

        def add(step: int, values: dict[str, float]) -> None:
            now = int(time.time() * 1000)
            client.log_batch(run, [Metric(k.replace("@", "_at_"), v, now, step) for k, v in values.items()])

        try:
            yield add
        except BaseException:
            client.set_terminated(run, "KILLED")
            raise
        client.set_terminated(run, "FINISHED")

    return begin
