"""Keeps the model that a device uses while the new one is worse on the device's own rows.

A model that is offered is compared with the one in use on the newest rows. Unless it is significantly worse
(`iot_client.state.model_comparison`) it is used at once, and stays on trial with the rows that follow until the next
one is offered: labels may come late. A refused one is tried with the rows that follow too, and each newer one when it
comes. The kept one is in a file beside the outbox, so that a restart continues with it.

What an operator takes back is not kept: of another lineage or generation, or a candidate that no longer is one, the
new model is used without a test.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.samples import Samples
from midge.iot_client.state import model_file
from midge.iot_client.state.local_tensors import Missing
from midge.iot_client.state.model_comparison import KeepRule, ModelComparison
from midge.iot_client.state.verified_model import VerifiedModel, about, verified
from midge.storage.files import atomic_write
from midge.wire.clocks import spell
from midge.wire.errors import WireError
from midge.wire.schema import Parameters

log = logging.getLogger("iot_client")

FORMAT = 1

Losses = Callable[[Parameters, Any, Any], npt.ArrayLike]
"""Called with all tensors by name, and rows and labels as `Samples.arrays` has them; returns the loss of each row."""
Tell = Callable[..., None]


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that is kept, and what for."""

    model: VerifiedModel
    newer: int
    """The version that was refused last."""
    tried: float
    """When rows last said so, in seconds since 1970."""
    since: float
    """When it began."""


class ModelKeeper:
    """Decides for one device whether a model is used. Its calls must take turns.

    Args:
        name: of the device.
        path: of the file with the kept model; None keeps it in memory.
        rule: when it is kept.
        samples: the device's own rows.
        losses: the loss of a model on each row.
        join: a model's tensors by name, with the device's local ones.
        tell: takes events.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        name: str,
        path: Path | None,
        rule: KeepRule,
        *,
        samples: Samples,
        losses: Losses,
        join: Callable[[VerifiedModel], Parameters],
        tell: Tell,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._path = name, path
        self._rule, self._samples, self._losses = rule, samples, losses
        self._join, self._tell, self._wall = join, tell, wall
        self.kept: KeptModel | None = None
        """What is kept now; None if the device uses what it is offered."""
        self.written = 0
        """Bytes written to the disk, in whole pages."""
        self._trial: _Trial | None = None
        self._void = 0
        """Rows up to this one are too old to say anything."""
        self._stored_at = 0.0
        """When the file was written, in seconds since 1970."""
        self._failing = False
        """Whether it was reported that losses cannot be computed."""
        self._begun = False

    def restore(self) -> VerifiedModel | None:
        """What was kept before a restart, if anything; a damaged file is ignored."""
        if self._path is None:
            return None
        with suppress(OSError):
            try:
                self.kept = read_kept(self._path)
                self._stored_at = self.kept.tried
            except WireError as error:
                log.warning("The model in %s is not used: %s.", self._path, error)
        return None if self.kept is None else self.kept.model

    def begin(self) -> None:
        """Try models from now on; before, the device does not run yet."""
        self._begun = True

    def takes(self, used: VerifiedModel, offered: VerifiedModel) -> bool:
        """Whether a model is used in place of the one in use. Blocks while both are tried.

        Raises:
            Missing: a model has local tensors of which the device has no values.
        """
        if used.same(offered):
            if self.kept is not None:
                self._end("it is the one to be used again")
                self._trial = None
            return True
        if used.given_up_for(offered):
            self._end("the operator took it back")
            self._trial = None
            return True
        if not self._begun:
            return self.kept is None
        if self.kept is not None and self._trial is not None and self._trial.new.same(offered):
            return False  # announced again: the trial goes on
        self._trial = trial = _Trial(used, offered, ModelComparison(self._rule), self._void)
        self._add_rows(trial)
        # Without rows a device follows the federation, unless it has rows to the contrary from before.
        if trial.comparison.refuses or (self.kept is not None and not trial.comparison.able):
            self._keep(trial)
            return False
        self._end(f"version {offered.version} is not worse on the device's own rows")
        return True

    @property
    def due(self) -> bool:
        """Whether `look` may have something to do."""
        trial = self._trial
        return self.kept is not None or (trial is not None and self._samples.seen - trial.counted >= self._rule.group)

    def look(self, used: VerifiedModel, offered: VerifiedModel) -> VerifiedModel | None:
        """Look at the rows that came; return the model to use from now on, or None if that does not change.

        Args:
            used: the model in use.
            offered: the one that would be used without a test.
        """
        trial = self._trial
        if trial is None:  # kept over a restart
            if self.kept is None or used.same(offered):
                return None
            self._trial = trial = _Trial(used, offered, ModelComparison(self._rule), self._void)
        self._add_rows(trial)
        if self.kept is None:
            if not trial.comparison.refuses:
                return None
            self._keep(trial)
            return trial.used
        if trial.comparison.no_longer_worse:
            self._end(f"version {offered.version} is no longer worse on the device's own rows")
        elif abs(self._wall() - self.kept.tried) > self._rule.limit:
            self._void = self._samples.seen
            self._end(f"no row came to try version {offered.version} on for {spell(self._rule.limit)}")
        else:
            return None
        self._trial = None
        return offered

    def _add_rows(self, trial: "_Trial") -> None:
        """Try both models on the whole groups of rows that are not counted yet."""
        x, y, seen = self._samples.newest(self._rule.rows)
        fresh = min(len(x), seen - trial.counted)
        whole = fresh - fresh % self._rule.group
        if whole <= 0 or trial.failed:
            return
        if self._samples.label is not None and (y == y[0]).all():
            return  # the best model is then the one that always says this, whatever else it has forgotten
        part = slice(len(x) - fresh, len(x) - fresh + whole)
        try:
            pair = [self._loss(model, x[part], y[part]) for model in (trial.used, trial.new)]
        except Missing:
            raise
        except Exception as error:  # a function of the user's: the device uses what it is offered
            trial.failed = True
            if not self._failing:
                self._failing = True
                log.exception("%s: models cannot be tried on its own rows: losses() failed.", self._name)
                self._tell("losses_failed", version=trial.new.version, why=f"{type(error).__name__}: {error}")
            return
        self._failing = False
        trial.comparison.add(*pair)
        trial.counted = seen - fresh + whole
        if self.kept is not None and trial.comparison.able:
            self._note_tried(self.kept, trial.new.version)

    def _loss(self, model: VerifiedModel, x: Any, y: Any) -> npt.NDArray[np.float64]:
        with np.errstate(all="ignore"):
            found = np.asarray(self._losses(self._join(model), x, y), np.float64)
        if found.shape != (len(x),):
            raise ValueError(
                f"losses() returned shape {found.shape} for {len(x)} rows: it must return one number for each"
            )
        return found

    def _keep(self, trial: "_Trial") -> None:
        now, before = self._wall(), self.kept
        if before is not None:
            if trial.comparison.able:
                self._note_tried(before, trial.new.version)
            return
        self._store(KeptModel(trial.used, trial.new.version, now, now))
        why = trial.comparison.words()
        log.warning(
            "%s: keeps version %d: with version %d, %s.", self._name, trial.used.version, trial.new.version, why
        )
        self._tell("keeps", version=trial.used.version, newer=trial.new.version, why=why)

    def _note_tried(self, kept: KeptModel, newer: int) -> None:
        """Record when rows were last tried, and write that rarely: flash memory wears."""
        now = self._wall()
        self.kept = KeptModel(kept.model, newer, now, kept.since)
        if abs(now - self._stored_at) > self._rule.limit / 8:
            self._store(self.kept)

    def _store(self, kept: KeptModel) -> None:
        self.kept, self._stored_at = kept, self._wall()
        if self._path is None:
            return
        data = packed_kept(kept)
        try:
            atomic_write(self._path, data)
        except OSError as error:
            log.warning("The model cannot be kept in %s (%s).", self._path, error.strerror)
        else:
            self.written += model_file.on_disk(data)

    def _end(self, why: str) -> None:
        kept, self.kept = self.kept, None
        if kept is None:
            return
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        log.warning("%s: no longer keeps version %d: %s.", self._name, kept.model.version, why)
        self._tell("keeps_no_more", version=kept.model.version, why=why)


@dataclass(slots=True)
class _Trial:
    """A new model and the one that is or was in use."""

    used: VerifiedModel
    new: VerifiedModel
    comparison: ModelComparison
    counted: int
    """Rows up to this one are in the comparison."""
    failed: bool = False
    """Whether losses could not be computed."""


def packed_kept(kept: KeptModel) -> bytes:
    """Encode a kept model as the bytes of its file."""
    more = {"newer": kept.newer, "tried": kept.tried, "began": kept.since}
    return model_file.encode(FORMAT, {**about(kept.model), **more}, kept.model.state)


def read_kept(path: Path) -> KeptModel:
    """Read such a file.

    Raises:
        OSError: there is none.
        WireError: it is damaged, or of another format.
    """
    header, body = model_file.read(path, FORMAT)
    try:
        return KeptModel(verified(header, body), int(header["newer"]), float(header["tried"]), float(header["began"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError("the file is broken") from error
