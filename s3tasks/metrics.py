"""The counts as metrics that Prometheus scrapes: a worker's over HTTP, an application's on its own registry.

It never counts anything itself, and never knows Celery. This is the only room that knows prometheus_client, which comes with
`pip install 's3tasks[prometheus]'`.

prometheus_client's own multiprocess mode is not used: it must be chosen before anybody imports that library, and it keeps a file
for every process that ever lived. Each process counts in a file of s3tasks.tallies instead; they are added up here.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from s3tasks.counting import METRICS, Metric, ProcessDirectory, Sample, count_into, samples
from s3tasks.settings import Settings
from s3tasks.tallies import Tallies
from s3tasks.version import __version__

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("metrics need prometheus-client: pip install 's3tasks[prometheus]'", name=missing.name) from missing

logger = logging.getLogger(__name__)

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def register(registry: CollectorRegistry, directory: str | None = None) -> None:
    """Counts what s3tasks does in this process from now on, and shows it on the registry of an application of your own.

    Call it once. Children that are forked afterwards count, too, and each process shows the sum of all. Processes that call it for
    themselves (those of an application server) show the sum of all if they name one `directory`, which must be there, belong to
    this user and not be writable by others. ValueError where it may not be used.
    """
    tallies = Tallies(directory or ProcessDirectory().path)
    count_into(tallies)
    registry.register(_Counted(tallies))


class Exporter:
    """The metrics of one worker: its processes count from now on, and once it serves, Prometheus can ask for the sums.

    Made in the worker's main process, before it forks. OSError where there is no directory to count in.
    """

    def __init__(self, settings: Settings) -> None:
        self._address, self._port = settings.metrics_address, settings.metrics_port
        self._directory = ProcessDirectory()
        self._tallies = Tallies(self._directory.path)
        self._stop_counting = count_into(self._tallies)
        self._registry = CollectorRegistry()
        self._registry.register(_Counted(self._tallies))
        self._server: Any = None
        _living.add(self)

    def serve(self) -> None:
        """Answers on the address and port of the settings, in a thread of its own. A port that is taken is an error in the log."""
        try:
            self._server, _ = start_http_server(self._port, self._address, self._registry)
        except OSError as problem:
            logger.error(  # noqa: TRY400 - the line says all, and the worker goes on
                "no metrics: %s:%s cannot be used (%s): set metrics_port (S3TASKS_METRICS_PORT) to a port of its own for each "
                "worker of a machine, and metrics_address to an address of this machine",
                self._address, self._port, problem.strerror or problem,
            )
        else:
            logger.info("metrics are at http://%s:%s/metrics", self._address, self._port)

    def close(self) -> None:
        """Serves and counts no more, and forgets the counts."""
        self._stop_counting()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._directory.close()

    def forget_inherited(self) -> None:
        """In a forked child: the parent's port is the parent's."""
        if self._server is not None:
            self._server.socket.close()
            self._server = None


class _Counted(Collector):
    """What is shown at each scrape: the sums of all processes as they are then."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Family]:
        running = GaugeMetricFamily("s3tasks_info", "The version of s3tasks that is running", labels=["version"])
        running.add_metric([__version__], 1)
        yield running
        families = {metric.name: _family(metric) for metric in METRICS}
        for sample in samples(self._tallies.totals()):
            _show(sample, families[sample.metric.name])
        yield from families.values()


def _family(metric: Metric) -> Family:
    kind = HistogramMetricFamily if metric.bounds else CounterMetricFamily
    return kind(metric.name, metric.meaning, labels=list(metric.labels))


def _show(sample: Sample, family: Family) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(list(sample.labels), sample.total)
        return
    bounds = [*(str(bound) for bound in sample.metric.bounds), "+Inf"]
    family.add_metric(list(sample.labels), list(zip(bounds, accumulate(sample.counts), strict=True)), sample.total)


_living: weakref.WeakSet[Exporter] = weakref.WeakSet()


def _after_fork() -> None:
    for exporter in list(_living):
        exporter.forget_inherited()


os.register_at_fork(after_in_child=_after_fork)
