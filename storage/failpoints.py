"""Named places at which a test kills the process, to check that no promise is lost with it.

A `failpoint("name")` stands between any two actions that are durable or visible to another process. It does nothing
unless the environment variable MIDGE_CRASH_AT names it when the process starts: as `name`, or as `name:3` for the third
time that it is reached. Then the process ends there by SIGKILL, as in a power cut. The idea is that of FreeBSD's
fail(9).
"""

import os
import signal
from collections.abc import Mapping
from types import MappingProxyType

VARIABLE = "MIDGE_CRASH_AT"

POINTS: Mapping[str, str] = MappingProxyType(
    {
        # the aggregator
        "store.created": "the store is made, and holds no model yet",
        "file.synced": "a file, such as a checkpoint, is complete on the disk, under its temporary name",
        "checkpoint.written": "a checkpoint's file has its name, and the store does not know it yet",
        "checkpoint.entered": "the store knows the checkpoint, and keeps what older ones needed",
        "checkpoint.pruned": "the store has forgotten older checkpoints, and their files are still there",
        "history.within": "a period of the history is written, and its transaction is open",
        "recovery.replayed": "the journal is replayed, and the frames that it made are not stored yet",
        "commit.before": "a batch is decided, and none of it is written",
        "commit.bodies": "the larger bodies of a batch are on the disk, and no record of them",
        "commit.within": "a batch is written, and its transaction is open",
        "witness.writing": "a transaction is durable, and its witness still has the one before",
        "commit.after": "a batch is durable, and none of it is carried out",
        "sum.opened": "a sum of masked updates is opened, and not in the journal",
        "sum.combined": "the sums of a step are in the journal, and the step is not",
        "step.applied": "a step is in the model, and not in any checkpoint",
        "release.computed": "a version is made, and its frames are not stored",
        "release.stored": "its frames are stored, and none of it is published",
        "serve.stored": "what is released for use is stored, and not published",
        "registered.stored": "a registered version is stored, and no name stands for it",
        "alias.handed_over": "what names stand for is on its way out",
        "release.handed_over": "its frames and the announcement are on their way out",
        "receipts.before": "everything is carried out, and no receipt was sent",
        "receipts.handed_over": "receipts are on their way out, and the updates are not acknowledged to the broker",
        "updates.acknowledged": "the broker knows that the batch has come",
        "post.acknowledged": "the broker has one more message of ours, and has acknowledged it",
        "frame.cleared": "a frame is off the broker, and the store still offers it",
        "frame.withdrawn": "the store no longer offers the frame",
        "secret.replaced": "a key of the day is replaced, and the old one not overwritten",
        # an aggregator with a standby, and the standby
        "copy.sending": "a transaction is durable, and the standby does not have it",
        "copy.confirmed": "the standby has a transaction, and its receipts wait here",
        "copy.syncing": "a transaction is in the standby's log, which is not synced",
        "copy.synced": "it is durable at the standby, which has not said so",
        "copy.applied": "it is in the standby's files, which are not synced",
        "copy.settled": "the standby's files are synced, and its log still has what is in them",
        "standby.promoted": "the standby has decided to serve, and its store still says that it follows",
        # a gateway
        "site.stored": "frames from above are stored, and the journal does not have their version",
        "site.followed": "the journal has a version from above, and nothing of it is published",
        "site.summed": "a sum is in the journal, and not in the outbox",
        # the mask helper
        "helper.writing": "a deposit is decided, and its transaction is open",
        "helper.written": "a deposit is durable, and the opening keys do not know of its sums",
        "helper.answered": "the opening keys know of the sums, and nothing was sent",
        # a device
        "model.fetched": "a model is fetched, and no training has begun",
        "update.trained": "an update is made, and not stored",
        "residual.written": "the residual of an update is on the disk, and the outbox does not know it",
        "outbox.storing": "an update is written to the outbox, and its transaction is open",
        "outbox.stored": "an update is in the outbox, and was not sent",
        "outbox.noting": "the outbox has changed, and its witness still has the previous state",
        "update.handed_over": "an update is on its way out",
        "update.offered": "the offer of a large update is on its way out",
        "chunks.handed_over": "chunks of a large update are on their way out",
        "publish.acknowledged": "the broker has one more message of ours, and has acknowledged it",
        "receipt.heard": "a receipt is here, and what it settles still in the outbox",
        "receipt.followed": "what the receipt settles is forgotten",
        "outbox.renewing": "the outbox has a new identity, and its transaction is open",
        "outbox.renewed": "the outbox has a new identity, and the session does not know it",
    }
)
"""Every failpoint by name: what has happened there, and what has not."""


def _chosen(wish: str) -> tuple[str, int]:
    name, _, hit = wish.partition(":")
    if name and (name not in POINTS or not (hit or "1").isdecimal() or hit == "0"):
        raise ValueError(f"{VARIABLE}={wish}: there is no such failpoint; storage.failpoints.POINTS has their names.")
    return name, int(hit or "1")


_name, _left = _chosen(os.environ.get(VARIABLE, ""))


def failpoint(name: str) -> None:
    """End the process here if MIDGE_CRASH_AT asks for it."""
    global _left  # noqa: PLW0603 - counts the hits of this process
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
