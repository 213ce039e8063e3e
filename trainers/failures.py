"""How a run ends without a model. They stand apart so that the command line knows them without importing Ray."""

from __future__ import annotations


class RunFailed(RuntimeError):
    """Training ended without a model; says why."""


class RunStopped(RuntimeError):
    """Training was asked to stop and left a checkpoint; the same run name goes on from there."""


class TrackingUnavailable(RuntimeError):
    """MLflow was away, or refused, until the end. Nothing is lost: the journal and the checkpoints hold it all."""


# MLflow, its database and the way there.
_LIBRARIES = ("mlflow", "sqlalchemy", "requests", "urllib3")
# Of MLflow: there is no such model, version or alias. A missing alias is reported as a bad parameter.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def is_of_mlflow(error: BaseException) -> bool:
    """Whether MLflow or a library on the way there raised it."""
    return type(error).__module__.partition(".")[0] in _LIBRARIES


def is_absent(error: Exception) -> bool:
    """Whether MLflow answered that what was asked for is not there; else it is away, or refuses."""
    return getattr(error, "error_code", None) in _ABSENT
