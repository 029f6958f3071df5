"""How all tests run: coroutines in a loop of their own, properties on the same examples each time; what is left out."""

import asyncio
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.demo.clock import live_virtually
from tests.left_out import note, sentence

# The same examples each time, and no limit on how long one takes: what passed does not fail on a busy machine.
# With --hypothesis-profile=search they are new ones.
_TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", _TIMELESS, derandomize=True)
settings.register_profile("search", _TIMELESS)
settings.load_profile("steady")

_LONG = (
    "federation/test_standby.py",
    "federation/test_failpoints.py",
    "simulation/test_kept_worlds.py",
    "gateway/test_kills.py",
    "aggregator/test_privacy_audit.py",
    "federation/test_keeping_live.py",
    "advice/test_advise.py",
    "acceptance/test_by_hand.py",
    "live/test_live.py",
    "simulation/test_soak_year.py",
    "dashboard/test_browser.py",
    "masking/test_groups.py",
)
"""Files of half a minute to some minutes: a worker that begins one last would keep the others waiting."""


_MEMORY = Path("/dev/shm")
_ROOM = 4 * 2**30
"""Free bytes from which temporary files are in memory. A whole run takes a fraction of that."""


def pytest_configure() -> None:
    """Keep temporary files in memory: stores and outboxes wait for the disk in each commit, thousands of times.

    A process that is killed loses nothing there. Tests of power cuts mount file systems of their own.
    """
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first."""
    order = {Path(__file__).parent / name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tests that are left out")
    group.addoption("--all-or-nothing", action="store_true", help="fail where any test was left out, and say which")
    group.addoption("--left-out", type=Path, metavar="FILE", help="add to this file why tests were left out")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if pyfuncitem.get_closest_marker("virtual") is not None:
        live_virtually(pyfuncitem.obj(**arguments))
    else:
        asyncio.run(pyfuncitem.obj(**arguments), debug=False)
    return True


# ------------------------------------------------------------------- what is left out


def _reports(config: pytest.Config) -> Iterator[tuple[str, str]]:
    """The tests that were left out, and why: those skipped, and those that may fail without a reason.

    Reports of all workers come to the terminal reporter of the process that was started, and to no other.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    for report in reporter.stats.get("skipped", ()):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        yield report.nodeid, why.removeprefix("Skipped: ")
    for report in (*reporter.stats.get("xfailed", ()), *reporter.stats.get("xpassed", ())):
        if not report.wasxfail.removeprefix("reason: "):
            yield report.nodeid, "it is marked xfail without a reason"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workerinput"):
        return
    left_out = list(_reports(config))
    if (file := config.getoption("left_out")) is not None:
        note(file, (why for _, why in left_out))
    if left_out and exitstatus == pytest.ExitCode.OK and config.getoption("all_or_nothing"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = list(_reports(config))
    if config.getoption("all_or_nothing"):
        for name, why in left_out:
            terminalreporter.write_line(f"LEFT OUT {name}: {why}", red=True)
    if left_out and config.getoption("left_out") is None:
        terminalreporter.write_line(sentence(why for _, why in left_out))
