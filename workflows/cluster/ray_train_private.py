"""Names of Ray Train that are not public, each behind a function or a class that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of Ray no longer has one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError


class RetriedBackend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's setup of torch.distributed, for which a worker lost while they connect is one more lost worker.

    Of what goes wrong before training begins, Ray 2.60 tries only two errors of its own again, and a lost worker is
    neither: the run would end at once. A backend is named by the public ``TorchConfig.backend_cls``, but there is no
    public one to derive from.
    """

    def before(self) -> Callable[[], None] | None:
        """A function to run on each worker before they connect, or None."""
        return None

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        function = self.before()
        if function is not None:
            worker_group.execute(function)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            raise WorkerGroupStartupFailedError(f"workers could not connect: {error.cause}") from error


def preemption_notice() -> Callable[[], Any]:
    """A function that says which nodes of these workers will be removed: a ``PreemptionInfo``, or None.

    It reads what Ray Train keeps in this worker. The public ``ray.train.get_preemption_info`` is a barrier (2.60
    broadcasts what rank 0 knows): all workers would wait for each other at every step, and for ever where one of them
    ends earlier. In a process that is no worker of Ray Train, the function always returns None.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        context = get_train_context().preemption_context
    except (ImportError, AttributeError, RuntimeError):  # another version of Ray, or no worker
        return lambda: None
    return lambda: getattr(context, "preemption_info", None)


def cause_of(failure: BaseException) -> BaseException:
    """The cause of a worker's failure, which is a value of the public ``WorkerGroupError.worker_failures``.

    The types of the values are not public: an error of the training function is wrapped, with its traceback as its
    text, and so is the error for a process that does not answer.
    """
    raised = getattr(failure, "_base_exc", failure)
    cause: BaseException = getattr(raised, "health_check_failure", raised)
    return cause


def is_start_timeout(failure: BaseException) -> bool:
    """Whether workers could not be started in time; ``ControllerError.controller_failure`` has no public classes."""
    return isinstance(failure, WorkerGroupStartupTimeoutError)
