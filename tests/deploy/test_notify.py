"""What systemd is told, by a socket that plays systemd."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.notify import notify, watchdog_interval
from midge.running import run_until_interrupted
from tests.waiting import LAST_RESORT


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(LAST_RESORT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield listener


class Service:
    """Serves until so much was told of it, or falls."""

    def __init__(self, manager: socket.socket, *, fails: bool = False) -> None:
        self.manager, self.fails = manager, fails
        self.told: list[bytes] = []

    async def serve(self) -> None:
        while len(self.told) < 4:
            self.told.append(await asyncio.to_thread(self.manager.recv, 100))
            if self.fails:
                raise ValueError("fallen")

    def stop(self) -> None:
        raise AssertionError("nobody interrupts")


def test_a_service_says_ready_lives_and_ends(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    service = Service(manager)
    run_until_interrupted(service)
    assert service.told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    last = manager.recv(100)
    while last == b"WATCHDOG=1":
        last = manager.recv(100)
    assert last == b"STOPPING=1"


def test_what_a_service_raises_comes_through(manager: socket.socket) -> None:
    with pytest.raises(ValueError, match="fallen"):
        run_until_interrupted(Service(manager, fails=True))
    assert manager.recv(100) == b"STOPPING=1"


def test_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"midge-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(LAST_RESORT)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1")
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_a_watchdog_for_another_process_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "120000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_interval() == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval() is None
