"""What the system allows is said before it hurts, with what to do."""

from pathlib import Path

import pytest

from midge.sensor_fleet.live.limits import SPARE, SystemLimits, advice, measured, problems

ENOUGH = SystemLimits(descriptors=6000, ports=28_232, memory=10**9)


def test_nothing_is_said_where_all_is_enough() -> None:
    assert problems(ENOUGH, 5000, 7000) == []
    assert problems(SystemLimits(), 10**6, 10**6) == []  # nothing is known, so nothing is refused


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (SystemLimits(descriptors=1024), ["5,128 open files", "1,024", "--nofile=8192", f"--devices {1024 - SPARE}"]),
        (SystemLimits(ports=3000), ["3,000 are available", "ip_local_port_range", "--devices 3000"]),
        (SystemLimits(memory=100_000_000), ["490 MB", "100 MB", "--devices 1020", "--model"]),
    ],
)
def test_each_limit_is_told_with_what_to_do(limits: SystemLimits, words: list[str]) -> None:
    (told,) = problems(limits, 5000, 7000)
    for word in words:
        assert word in told


def test_as_many_devices_as_it_names_do_fit() -> None:
    for limits in (SystemLimits(descriptors=1024), SystemLimits(ports=3000), SystemLimits(memory=100_000_000)):
        (told,) = problems(limits, 5000, 7000)
        most = int(told.split("--devices ")[1].split(",")[0].rstrip("."))
        assert problems(limits, most, 7000) == [] and problems(limits, most + 1, 7000)


def test_a_broker_of_somebody_else_is_only_advised_on() -> None:
    (told,) = problems(SystemLimits(descriptors=100), 500, 10, near=False)
    assert "the broker that it starts" not in told
    assert "max_connections" in advice(5000) and "LimitNOFILE=8192" in advice(5000)
    assert "install Mosquitto" in problems(ENOUGH, 500, 10, embedded=True)[0]


def test_numbers_are_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "proc/net").mkdir()
    (tmp_path / "proc/sys/net/ipv4/ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "proc/net/tcp").write_text(
        "head\n 0: 0100007F:8001 0100007F:075B 06\n 1: 0100007F:075B 00000000:0 0A\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    found = measured(tmp_path)
    assert (found.ports, found.memory) == (28_231, 512_000)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("300000\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("100000\n")
    assert measured(tmp_path).memory == 200_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert measured(tmp_path).memory == 512_000
    assert measured(tmp_path / "nothing").ports is None
