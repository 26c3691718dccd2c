"""Shards on a Ray cluster: each is a task, and one whose worker is lost is given to another.

Tokens go to the workers and columns come back through Ray; no file is shared, and only the driver writes. Every machine
needs tailbound and the model.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from tailbound.lab.audit.shards import Done, Reader, Shard, Work
from tailbound.lab.errors import InputError, first_line, need

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with the audit."""

LOSSES = 3
"""Workers that a shard may lose; after that it is not bad luck."""


def check() -> None:
    """Refuse to go on without Ray.

    Raises:
        InputError: it is not installed.
    """
    need("ray", "--ray needs the extra", "ray")


class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        losses: by number of a shard, how many workers were lost on it.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.losses: dict[int, int] = {}

    def read(self, work: Work, shards: Sequence[Shard]) -> Iterator[Done]:
        """Shards in the order in which they are done.

        Raises:
            InputError: something that a worker needs cannot be had there; a shard that lost too many workers.
        """
        import ray
        from ray import exceptions

        lost = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.LocalRayletDiedError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )
        # Ray's own retries are silent; here they are counted, and end.
        task = ray.remote(num_cpus=self._threads, max_retries=0)(_read)
        shared = ray.put(work)
        pending = {task.remote(shared, shard): shard for shard in shards}
        try:
            while pending:
                [ready], _ = ray.wait(list(pending), num_returns=1)
                shard = pending.pop(ready)
                try:
                    yield ray.get(ready)
                except lost as error:
                    self._lose(shard, error)
                    pending[task.remote(shared, shard)] = shard
                except exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, InputError) else error) from None
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _lose(self, shard: Shard, error: Exception) -> None:
        self.losses[shard.number] = self.losses.get(shard.number, 0) + 1
        if self.losses[shard.number] >= LOSSES:
            first = first_line(error)
            raise InputError(
                f"{shard.text} lost {LOSSES} workers, the last by: {first} Texts that are done are kept, and --resume "
                "goes on. Most often it is the memory, as each worker holds the model: start the cluster with a "
                "smaller --num-cpus, and so with fewer workers at a time"
            ) from error


@contextlib.contextmanager
def connected(address: str, threads: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one; leave it, or end it, with the block.

    Args:
        address: `local`, `auto` or `HOST:PORT`.
        threads: CPUs that a shard takes.

    Raises:
        InputError: no Ray, no cluster there, or no machine in it that has as many CPUs.
    """
    check()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    import ray

    # Ray tells stdout of lost workers. That is where results go, and the audit says itself how many there were.
    with contextlib.redirect_stdout(io.StringIO()):
        _connect(address)
        try:
            _check_size(address, threads)
            yield Cluster(threads)
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    _check_answers(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise _no_cluster(address, error) from error


def _check_answers(address: str) -> None:
    """Ray itself asks for eight minutes where nobody answers."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InputError:
    return InputError(
        f"--ray {address}: no cluster there ({first_line(error)}); start one with `ray start --head`, or give "
        f"--ray {LOCAL}"
    )


def _check_size(address: str, threads: int) -> None:
    import ray

    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < threads:
        raise InputError(
            f"--ray {address}: a text takes {threads} CPUs, and the largest machine of the cluster has {most:g}; give "
            "fewer --threads"
        )


def _read(work: Work, shard: Shard) -> Done:
    """What a worker does."""
    return _reader(work).read(shard)


@functools.lru_cache(maxsize=1)
def _reader(work: Work) -> Reader:
    """The reader of this worker, which reads the model once."""
    return Reader(work)
