"""What a job can fail with. The exit code of each class is what ``vista`` returns (docs/operations.md)."""

from __future__ import annotations

from enum import IntEnum

from vista.errors import DataError, VistaError


class ExitCode(IntEnum):
    """How a run ended."""

    DONE = 0
    INTERNAL = 1
    BAD_INPUT = 2
    DEAD_LETTERS = 3
    NOT_PUBLISHED = 4


class JobError(VistaError):
    """Base of what the jobs raise."""

    exit_code = ExitCode.BAD_INPUT


class OptionsError(JobError):
    """An option is missing, out of range, or does not fit the store, the tables or the bundle."""


class RunOptionsDiffer(JobError):
    """A run directory holds a run with other options; to continue it they must be the same."""


class RunInProgress(JobError):
    """Another process holds the run directory."""


class RunRecordDamaged(JobError):
    """A file of the run directory cannot be read back."""


class RunStorageFull(JobError):
    """No space is left for what a run keeps or spills; nothing was published and the old generation is live."""

    exit_code = ExitCode.NOT_PUBLISHED


class SourceLost(JobError):
    """The source that is followed does not answer, or no longer has what was not read."""

    exit_code = ExitCode.NOT_PUBLISHED


class SinkLost(JobError):
    """The sink that summaries are delivered to does not answer, or refuses some; the store is as it should be."""

    exit_code = ExitCode.NOT_PUBLISHED


class BucketFailed(JobError):
    """A task failed after all attempts; nothing was published and the old generation is live."""

    exit_code = ExitCode.NOT_PUBLISHED


class InputFailed(BucketFailed, DataError):
    """A task failed for a fault of the input or the options, which trying again would not mend."""

    exit_code = ExitCode.BAD_INPUT


class IncompleteRun(JobError):
    """Expected users and written plus dead-lettered users differ; nothing was published."""

    exit_code = ExitCode.NOT_PUBLISHED


class WorkerLost(JobError):
    """A worker process ended while it had work and the runner did not replace it."""

    exit_code = ExitCode.NOT_PUBLISHED


class EngineAway(JobError):
    """Where the tasks should run, nothing answers."""

    exit_code = ExitCode.NOT_PUBLISHED


class EngineFailed(JobError):
    """A cluster gave up on the tasks, or has no worker."""

    exit_code = ExitCode.NOT_PUBLISHED


class EngineUnfit(JobError):
    """A worker has another environment than the driver, or does not see the run's folder."""
