"""An aggregator's metrics for Prometheus: `midge aggregate --metrics PORT` serves them on the loopback.

Also `/alive`, which answers while the process runs, and `/ready`, which returns 503 while no updates are accepted.
"""

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from midge.aggregator.metrics.counters import Histogram
from midge.wire.inert import inert
from midge.wire.messages import HealthState, Verdict

if TYPE_CHECKING:
    from midge.aggregator.service import Aggregator

_VERDICTS = dict.fromkeys((*(verdict.value for verdict in Verdict), "duplicate"), 0)
"""Counters that exist from the start: Prometheus sees no increase in one that begins at 1."""
_EVENTS = dict.fromkeys(("disconnected", "evaluation_failed", "limited", "put_back", "quarantine", "refused_always"), 0)
"""The same for the events that alert rules count."""

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Upper bounds of the buckets of spent privacy, as shares of the budget."""


class Exposition:
    """Reads an aggregator's counters when it is scraped; between scrapes it costs nothing."""

    def __init__(self, aggregator: "Aggregator") -> None:
        self._aggregator = aggregator

    def collect(self) -> Iterable[Metric]:
        """All metrics, with their current values."""
        aggregator = self._aggregator
        meters = aggregator.meters
        yield _counts("midge_updates", "Updates by verdict", "verdict", _VERDICTS | meters.verdicts)
        yield _counts("midge_dropped", "Messages that were dropped, by reason", "reason", meters.dropped)
        yield _histogram("midge_staleness_steps", "Staleness of accepted updates", meters.staleness)
        yield _histogram("midge_journal_commit_seconds", "Journal transactions", meters.commit_seconds)
        yield _histogram("midge_receipt_seconds", "From an update's arrival to its receipt", meters.receipt_seconds)
        yield _counts("midge_bytes", "Payload bytes", "direction", {"in": meters.bytes_in, "out": meters.bytes_out})
        yield CounterMetricFamily("midge_connects", "Connections made to the broker", value=meters.connects)
        yield _counts("midge_events", "Events by name, see docs/events.md", "event", _EVENTS | meters.events)
        if not aggregator.open_now:
            return  # scraped before it has begun
        core = aggregator.core
        states: dict[str, int] = {}
        held = keeping = 0
        for name, hello in list(aggregator.devices.items()):
            states[hello.state.value] = states.get(hello.state.value, 0) + 1
            keeping += bool(hello.keeps)
            held += max(0, hello.next - max(hello.first, core.hi(name, hello.outbox) + 1))
        devices = GaugeMetricFamily("midge_devices", "Devices by reported state", labels=["state"])
        for state, number in states.items():
            devices.add_metric([state], number)
        yield devices
        found = GaugeMetricFamily("midge_federated", "Metrics on devices' own data", labels=["metric", "of"])
        for name, spread in aggregator.evaluation.federated.items():
            values = {"mean": spread.mean, "low": spread.low, "median": spread.median, **spread.classes}
            for of, value in values.items():
                found.add_metric([inert(name), inert(of)], value)
        yield found
        sites = GaugeMetricFamily("midge_sites", "Spread of the sites' metrics", labels=["metric", "of"])
        for name, numbers in aggregator.federation.reports.sites().items():
            for of, value in numbers.items():
                sites.add_metric([inert(name), of], value)
        yield sites
        yield from self._health()
        yield from self._durability()
        yield from self._privacy()
        yield from self._standby()
        for name, text, value in (
            ("midge_model_version", "Newest released version", core.version),
            ("midge_model_step", "Steps applied", core.step),
            ("midge_buffered_updates", "Accepted updates that wait for their step", core.buffered),
            ("midge_outgoing_messages", "Messages that wait to be published", aggregator.outgoing),
            ("midge_outbox_updates", "Updates in the devices' outboxes, as reported, that are not settled", held),
            ("midge_keeping_devices", "Devices that keep their model, as a newer one is worse on their rows", keeping),
            ("midge_chunk_bytes", "Bytes of a chunk, as the broker takes it", aggregator.federation.shelf.chunk),
            ("midge_last_release_timestamp_seconds", "When the newest version was released", core.released_at),
            ("midge_share", "Share of the devices that train from a version", core.steering.share),
            ("midge_ready", "1 if updates are accepted", float(aggregator.ready)),
        ):
            yield GaugeMetricFamily(name, text, value=value)

    def _health(self) -> Iterable[Metric]:
        """Health metrics: whether it learns, and what is wrong."""
        aggregator = self._aggregator
        health = aggregator.health
        states = GaugeMetricFamily("midge_health", "1 for the state that the federation is in", labels=["state"])
        for state in HealthState:
            states.add_metric([state.value], float(health.state is state))
        yield states
        recent = GaugeMetricFamily("midge_recent_devices", "Devices by verdict in 5 minutes", labels=["verdict"])
        for verdict, devices in health.devices.items():
            recent.add_metric([inert(verdict)], devices)
        yield recent
        found = GaugeMetricFamily("midge_evaluation", "Newest results of evaluate()", labels=["metric"])
        for name, number in list(aggregator.evaluation.metrics.items()):
            found.add_metric([inert(name)], number)
        yield found
        activity = aggregator.federation.activity
        for name, text, value in (
            ("midge_alarming", "1 if the operator must act", float(health.alarming)),
            ("midge_alarms", "Alarms about single devices and credentials", len(health.alarms)),
            ("midge_refused_devices", "Devices whose updates are all refused", len(activity.refused_always)),
            ("midge_last_accepted_timestamp_seconds", "When an update was last accepted", health.accepted),
        ):
            yield GaugeMetricFamily(name, text, value=value)

    def _privacy(self) -> Iterable[Metric]:
        """What the devices of a private federation have spent. No device is named, as in all metrics."""
        core = self._aggregator.core
        spent = core.spent
        if spent is None:
            return
        epsilons = sorted(core.epsilons)
        bounds = [share * spent.budget for share in _SHARES]
        buckets = [(f"{bound:g}", bisect_right(epsilons, bound)) for bound in bounds]
        yield HistogramMetricFamily(
            "midge_privacy_epsilon",
            "ε that each device has spent",
            buckets=[*buckets, ("+Inf", len(epsilons))],
            sum_value=sum(epsilons),
        )
        for name, text, value in (
            ("midge_privacy_epsilon_worst", "The largest ε that one device has spent", spent.worst),
            ("midge_privacy_epsilon_budget", "ε that each device may spend", spent.budget),
            ("midge_privacy_delta", "δ of these ε", spent.delta),
            ("midge_privacy_exhausted_devices", "Devices that may give nothing more", spent.exhausted),
            ("midge_privacy_bare_step", "The last step without noise, 0 if there is none", spent.bare),
        ):
            yield GaugeMetricFamily(name, text, value=value)

    def _standby(self) -> Iterable[Metric]:
        """How far the standby is; nothing where none is meant to be."""
        state = self._aggregator.feed.state(time.monotonic())
        if state is None or not self._aggregator.feed.progress.expected:
            return
        for name, text, value in (
            ("midge_standby", "1 if a standby follows this store", float(state.state == "following")),
            ("midge_standby_lag_seconds", "Age of the oldest transaction that the standby lacks", state.seconds),
            ("midge_standby_lag_updates", "Receipted updates that the standby lacks", state.updates),
        ):
            yield GaugeMetricFamily(name, text, value=value)

    def _durability(self) -> Iterable[Metric]:
        """What ends slowly: room on the disk, credentials, and trust in the clock."""
        federation = self._aggregator.federation
        directory, dating = federation.store.directory, federation.issuer.dating
        expiry = GaugeMetricFamily(
            "midge_credential_expiry_timestamp_seconds", "When a credential expires", labels=["credential"]
        )
        for end in federation.credential_alarms.ends:
            expiry.add_metric([inert(end.what.removeprefix("The "))], end.at.timestamp())
        yield expiry
        disk, trusted = shutil.disk_usage(directory), dating.now()
        lag = federation.core.lsn - federation.upkeep.checkpointed
        for name, text, value in (
            ("midge_store_bytes", "Bytes of the store's files", _size(directory)),
            ("midge_disk_free_bytes", "Bytes free on the store's disk", disk.free),
            ("midge_disk_bytes", "Bytes of the store's disk", disk.total),
            ("midge_journal_lag_records", "Records after the newest checkpoint, which a restart replays", lag),
            ("midge_clock_skew_seconds", "The machine's clock minus the time that is announced", time.time() - trusted),
            ("midge_clock_trusted", "1 if the machine's clock is believed", float(not dating.doubt)),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def _size(directory: Path) -> int:
    """Bytes of all files below a directory; one that vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            with suppress(OSError):
                total += (Path(folder) / name).stat().st_size
    return total


def serve(aggregator: "Aggregator", port: int, host: str = "127.0.0.1") -> None:
    """Serve `/metrics`, `/alive` and `/ready` from a thread, as long as the process lives.

    Raises:
        OSError: the port is in use.
    """
    server = make_server(host, port, pages(aggregator), handler_class=_Silent)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def pages(aggregator: "Aggregator") -> Callable[..., Iterable[bytes]]:
    """The pages of `serve`, as a WSGI application (PEP 3333)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Exposition(aggregator))
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/alive":
                good, words = True, b"alive"
            case "/ready":
                good = aggregator.open_now and aggregator.ready
                words = b"ready" if good else b"not ready"
            case _:
                page: Iterable[bytes] = metrics(environ, start_response)
                return page
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [words + b"\n"]

    return answer


class _Silent(WSGIRequestHandler):
    """Suppresses the log line of each request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        """Log nothing."""


def _counts(name: str, text: str, label: str, counts: "dict[str, int]") -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in list(counts.items()):
        family.add_metric([inert(value)], number)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.cumulative(), sum_value=histogram.total)
