"""The ledger's own arithmetic: it must see what it is there to see."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.harness.ledger import Audit, Books, audit


def verdict(place: int, word: str = "accepted") -> dict[str, Any]:
    return {"device": "device-0", "outbox": 1, "seq": place + 1, "verdict": word, "place": place}


def settled(through: int, first: int = 0) -> dict[str, Any]:
    return {"device": "device-0", "outbox": 1, "through": through, "first": first}


def books(directory: Path, model: list[float], *lines: dict[str, Any], torn: str = "") -> Audit:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "device-0.jsonl").write_text(text + torn)
    save_file({"x": np.array(model, np.float32)}, directory / "model.safetensors")
    return audit(directory / "model.safetensors", directory)


def test_what_is_in_order(tmp_path: Path) -> None:
    told = verdict(0), verdict(0), settled(1), verdict(1, "stale"), settled(2)
    assert books(tmp_path, [1, 0, 1, 0], *told) == Audit(
        1, 0, 0, 2
    )  # the third is in and was not yet told: that is fine


def test_what_was_accepted_and_is_not_there_is_lost(tmp_path: Path) -> None:
    assert books(tmp_path, [1, 0, 0], verdict(0), verdict(1)) == Audit(2, 1, 0, 1)


def test_what_was_settled_without_a_word_counts_as_accepted(tmp_path: Path) -> None:
    assert books(tmp_path, [0, 0, 1, 0], settled(2, first=2)) == Audit(2, 1, 0, 1)


def test_what_is_there_twice_is_doubled_whether_it_was_told_or_not(tmp_path: Path) -> None:
    assert books(tmp_path, [2, 3, 1], verdict(0)) == Audit(1, 0, 2, 3)


def test_what_was_refused_and_is_there_is_once_too_often(tmp_path: Path) -> None:
    assert books(tmp_path, [1, 0], verdict(0, "stale")) == Audit(0, 0, 1, 1)


def test_a_line_that_was_cut_short_says_nothing(tmp_path: Path) -> None:
    assert books(tmp_path, [1, 0], verdict(0), torn=json.dumps(verdict(1))) == Audit(1, 0, 0, 1)


def test_two_verdicts_on_one_update_are_a_lie(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two verdicts on its update 1"):
        books(tmp_path, [1], verdict(0), verdict(0, "stale"))


def test_another_model_is_none_of_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole numbers"):
        books(tmp_path, [0.5], verdict(0))


def test_no_model_at_all_is_said_so(tmp_path: Path) -> None:
    for model in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="is no model of a ledger"):
            audit(model, tmp_path)


def test_books_are_read_by_name() -> None:
    assert Books.parse("devices=3 store=/tmp/s") == Books(devices=3, store="/tmp/s")
    for wrong in ("devices", "devices=x", "device=3"):
        with pytest.raises(ValueError, match="is not of the form name=value"):
            Books.parse(wrong)
