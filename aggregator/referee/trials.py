"""The list of trials; each leaves the device ready for the next."""

from collections.abc import Awaitable, Callable

from midge.aggregator.referee import life_trials, model_trials, sending_trials
from midge.aggregator.referee.referee import Referee

Trial = tuple[str, Callable[[Referee], Awaitable[None]], tuple[str, ...]]
"""A description, the trial, and the rules that count as broken if the device does nothing."""
TRIALS: tuple[Trial, ...] = (
    ("another device of its name asks", life_trials.question, ("question",)),
    ("a model of which a chunk lacks", model_trials.first_fetch, ("recovery",)),
    ("a receipt that is lost, and one that comes twice", sending_trials.lost_receipt, ("resending",)),
    ("the same announcement again", model_trials.once, ("once",)),
    ("a newer announcement during a fetch", model_trials.newer_while_fetching, ("newer version",)),
    ("a corrupt chunk, and a wrong model", model_trials.corrupt, ()),
    ("a step over two versions", model_trials.merged, ()),
    ("fields and kinds of a later version", life_trials.unknown, ()),
    ("busy", sending_trials.busy, ("busy",)),
    ("chunks, granted with holes", sending_trials.chunked, ("grants",)),
    ("who takes part", model_trials.share, ()),
    ("a pause", life_trials.paused, ()),
    ("cleared topics", life_trials.cleared, ()),
    ("a restart of the aggregator", sending_trials.restart, ("restart",)),
    ("a receipt of the aggregator before", sending_trials.token, ("token",)),
    ("a restored outbox", sending_trials.old_copy, ("old copy",)),
)
"""In this order: each but the last leaves the device with nothing unsettled."""
