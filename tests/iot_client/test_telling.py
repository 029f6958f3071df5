"""What a device's events come to on a terminal while its broker comes and goes."""

import pytest

from midge.commands import telling

LOST: dict[str, object] = {"event": "disconnected", "why": "It ended the connection.", "refused": False}
BACK: dict[str, object] = {"event": "connected"}


def test_a_broker_that_comes_and_goes_is_told_once_and_one_that_stays_away_always(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each connection that lived for a moment was once told as two lines, for ever."""
    now = [0.0]
    monkeypatch.setattr("midge.commands.telling.time.monotonic", lambda: now[0])
    say = telling.InWords()

    def said(*events: dict[str, object]) -> list[str]:
        for event in events:
            say(event)
        return [line.split(" ", 3)[3].partition(":")[0] for line in capsys.readouterr().out.splitlines()]

    assert said(BACK, LOST, BACK) == ["Connected to the broker.", "Lost the broker", "The broker is back."]
    for _ in range(20):
        now[0] += 30.0
        assert said(LOST, BACK) == []
    assert said(LOST) == [] and said(LOST, LOST) == ["Lost the broker"]  # it stays away this time
    assert said(BACK) == ["The broker is back."]
    assert said({**LOST, "why": "Another reason."}, BACK) == ["Lost the broker", "The broker is back."]
    now[0] += 3600.0
    assert said(LOST, BACK) == ["Lost the broker", "The broker is back."]
