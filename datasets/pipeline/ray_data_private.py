"""Names of Ray Data that are not public, each behind a function that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of Ray no longer has one of them. Ray is imported by the
functions: reading files of a bundle's user needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


# Modules whose loggers announce at once, as faults of Ray, errors that reach the caller anyway.
LOUD = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")


def set_options(*, progress: bool) -> None:
    """Settings of Ray Data for this process: order kept, quiet, and the reader that starts quickly.

    The context that holds them is a developer API, and not all of its fields are documented.
    ``use_datasource_v2``: with the newer reader of 2.60, a streamed epoch over small Parquet files takes 5-26 s instead
    of 0.2-0.5 s.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.use_datasource_v2 = False
    context.enable_progress_bars = progress
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False


def limit_memory(dataset: ray.data.Dataset, size: int) -> None:
    """Let a dataset that runs hold at most `size` bytes in the object store, about.

    Without it Ray Data reads on until the object store is half full. The limits of one dataset are set through its
    context, a developer API; the public options are those of ``ray.train``'s datasets.
    """
    import ray.data

    limits = ray.data.ExecutionResources.for_limits(object_store_memory=size)
    dataset.context.execution_options.resource_limits = limits


def arrow_refs(dataset: ray.data.Dataset) -> list[ray.ObjectRef[pa.Table]]:
    """Run a dataset; references to its blocks in the object store, as Arrow tables.

    A developer API. Whoever has a reference reads the block where it lies, without a copy; ``iter_batches`` copies.
    """
    refs: list[ray.ObjectRef[pa.Table]] = dataset.to_arrow_refs()
    return refs


def user_code_error(error: Exception) -> Exception:
    """An error that carries another one out of a task of Ray Data, as its argument.

    Ray pickles an exception's arguments, not its cause, appends advice on retries to messages, and logs all but this
    error of its own as a fault of Ray. It is a developer API.
    """
    from ray.exceptions import UserCodeException

    carrier: Exception = UserCodeException(error)
    return carrier
