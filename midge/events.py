"""The registry of events: every name that `on_event` and `--log json` use, its level, its fields and its meaning.

A device, an aggregator and a fleet's authority emit them as dicts with `event`, `time` and the fields below. A test
holds that no other name or field is emitted; docs/events.md is made from here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Service = Literal["aggregator", "device", "authority", "helper", "gateway"]
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class EventKind:
    """One event of one service."""

    name: str
    level: Level
    fields: tuple[str, ...]
    """Fields beside `event` and `time`, and beside `device` where a device emits it. Empty ones may be missing."""
    meaning: str


class EventField(NamedTuple):
    """A field of events."""

    type: str
    """Its Python type, as an annotation."""
    meaning: str


FIELDS: Mapping[str, EventField] = {
    "updates": EventField("int", "number of updates"),
    "rows": EventField("int", "number of rows"),
    "site": EventField("str", "the site of a gateway; empty: the federation's own aggregator"),
    "alarm": EventField("bool", "true if the prediction is unusual"),
    "alias": EventField("str", "`champion` or `candidate`; empty: the newest version"),
    "announced": EventField("int | None", "the version that devices know; null after a restored backup"),
    "base": EventField("int", "the version that the update was trained from"),
    "before": EventField("str", "the state before"),
    "bounded": EventField("bool", "whether the rate is lowered to the limit"),
    "body": EventField("bytes", "first 8 bytes of the SHA-256 of the body that was judged"),
    "bodies": EventField("int", "stored updates that were rewritten without the device"),
    "by": EventField("str", "who gave the order; empty: a rule"),
    "candidate": EventField("int", "the version that is tried; 0: none"),
    "champion": EventField("int", "the version for use; 0: none"),
    "changed": EventField("list[str]", "keys of the settings file that have changed"),
    "channel": EventField("str", "`train` or `serve`"),
    "channels": EventField("list[str]", "names of the inputs"),
    "checkpoints": EventField("int", "checkpoints that were removed"),
    "chunk": EventField("int", "bytes of a chunk from now on"),
    "class": EventField("str", "the predicted class"),
    "code": EventField("int", "exit code of a process, or minus the signal that ended it"),
    "codec": EventField("str", "of its updates"),
    "commands": EventField("list[str]", "commands for the operator to run"),
    "damping": EventField("float", "factor on the server's rate"),
    "device": EventField("str", "name of the device"),
    "devices": EventField("int", "number of devices"),
    "digest": EventField("str", "hash of the trusted authorities, hexadecimal"),
    "done": EventField("int", "bytes so far"),
    "dropped": EventField("int", "waiting updates that will not be applied"),
    "earlier": EventField("bool", "whether devices of an earlier version, which name no limit, are online"),
    "events": EventField("int", "number of events that were not reported"),
    "evidence": EventField("dict[str, Any]", "counts and measures of the trial"),
    "examples": EventField("int", "rows that were evaluated"),
    "failed": EventField("int", "consecutive failures"),
    "features": EventField("list[str]", "names of the model's inputs, in order"),
    "federation": EventField("str", "name of the federation"),
    "file": EventField("str", "path of the settings file"),
    "finding": EventField("str", "the state of the trial"),
    "factor": EventField("float", "what the sum was multiplied with"),
    "granted": EventField("int", "number of requests that were granted"),
    "kept": EventField("int", "updates that continue under the new identity"),
    "killed": EventField("int", "trainings of this process that were lost in this way"),
    "label": EventField("str", "the column that is predicted"),
    "largest": EventField("int | None", "bytes of the largest message or part; null if only the broker limits it"),
    "least": EventField("int", "bytes of the smallest part"),
    "limit": EventField("float", "the largest rate without oscillation"),
    "lineage": EventField("str", "identity of the model, hexadecimal"),
    "lost": EventField("int", "entries of the outbox that were lost"),
    "newer": EventField("int", "the version that is worse on the device's own rows"),
    "metrics": EventField("dict[str, Any]", "numbers by name; of `federated_evaluation` a spread for each"),
    "outbox": EventField("int", "identity of the outbox"),
    "part": EventField("int", "index of the part"),
    "prediction": EventField("float", "the predicted value"),
    "pruned": EventField("list[int]", "versions that are no longer kept"),
    "rate": EventField("float", "the server's rate"),
    "recipe": EventField("int", "local steps of the devices' own recipe"),
    "records": EventField("int", "records of the journal that were rewritten"),
    "refused": EventField("int | bool", "number refused; of `disconnected`: true if the broker refused the connection"),
    "repeat": EventField("bool", "true if the verdict is that of an earlier delivery"),
    "residual": EventField("float", "size of what the encoder left out, relative to the delta"),
    "retry_after": EventField("float", "seconds to wait before it is sent again"),
    "rolled_back": EventField("int | None", "the version from which training goes on; null if it is not a rollback"),
    "scale": EventField("float", "the part of it that is applied"),
    "score": EventField("float", "how unusual the row is"),
    "seconds": EventField("float", "duration"),
    "sums": EventField("int", "number of sums"),
    "number": EventField("int", "of the newest sum"),
    "waiting": EventField("int", "updates that wait"),
    "seq": EventField("int", "number of the update in its outbox"),
    "share": EventField("float", "the share of the devices that use the candidate"),
    "size": EventField("int", "bytes"),
    "sources": EventField("list[dict[str, Any]]", "counts of rows, for each source"),
    "staleness": EventField("int", "steps since its base"),
    "state": EventField("str", "the state: of a device, an aggregator, a standby or the health"),
    "step": EventField("int", "steps applied to the model"),
    "steps": EventField("int | None", "local steps; null for the devices' own"),
    "threshold": EventField("float", "score from which a row is unusual"),
    "through": EventField("int", "updates up to this one are settled"),
    "topic": EventField("str", "MQTT topic"),
    "total": EventField("int", "bytes in all"),
    "unsure": EventField("int", "updates that may have been settled and stay behind"),
    "untold": EventField("int", "number of such messages before it that were not reported"),
    "useless": EventField("bool", "whether no useful row comes"),
    "verb": EventField("str", "the order"),
    "verdict": EventField("str", "verdict on the update (see the protocol)"),
    "version": EventField("int", "version of the model"),
    "wakes": EventField("float", "seconds since 1970; 0 if it does not wake by itself"),
    "way": EventField('Literal["up", "down"]', "`up` or `down`"),
    "weight": EventField("float", "of an accepted update"),
    "where": EventField("dict[str, Any]", "capabilities of the devices that use the candidate; empty: all devices"),
    "whose": EventField("str", "the member whose certificate it is"),
    "why": EventField("str", "the reason, one sentence"),
    "written": EventField("int", "bytes that the outbox has written to its disk"),
}
"""One name means the same in every event."""


def _kinds(*lines: tuple[str, Level, str, str]) -> dict[str, EventKind]:
    return {name: EventKind(name, level, tuple(fields.split()), meaning) for name, level, fields, meaning in lines}


EVENTS: Mapping[Service, Mapping[str, EventKind]] = {
    "aggregator": _kinds(
        (
            "alarm",
            "warning",
            "why",
            "something concerns a single device, a credential or the connection; the federation may learn",
        ),
        (
            "alias",
            "info",
            "champion candidate share where why by rolled_back",
            "the versions that the names stand for have changed",
        ),
        (
            "alpha",
            "warning",
            "rate limit devices bounded",
            "FedAsync's α times the number of devices is so large that the model swings",
        ),
        ("clipped", "warning", "device step scale", "an update is out of scale and applied in part"),
        ("clock", "warning", "why", "the machine's clock contradicts earlier announcements, or was never set"),
        ("connected", "info", "", "connected to the broker"),
        ("damped", "warning", "damping rate", "updates grow from round to round: the server's rate is reduced"),
        ("device", "info", "device state", "a device has reported a state"),
        ("disconnected", "warning", "why refused", "the connection to the broker was lost or refused"),
        ("dropped", "warning", "topic why untold", "a message could not be read or was not expected"),
        ("encoder", "warning", "device codec why", "a device's encoder loses what it leaves out"),
        (
            "erased",
            "info",
            "device records bodies checkpoints",
            "a withdrawn device was erased; `device` is its pseudonym",
        ),
        ("evaluation", "info", "version step metrics", "result of `evaluate`"),
        ("evaluation_failed", "error", "version step why", "`evaluate` raised"),
        ("features", "info", "features", "the names of the model's inputs are known: two devices agree"),
        ("federated_evaluation", "info", "version devices metrics", "the devices' results on their own data, combined"),
        ("fetched_again", "warning", "device version part size why", "a device fetched one part three times"),
        ("freeze", "info", "devices", "statistics of the devices' data are pooled and frozen into the model"),
        ("full", "error", "why", "the store's disk is full: updates stay with their devices"),
        ("health", "info", "state why before", "the health has changed; a warning if `state` is stalled, held or full"),
        ("helper_away", "warning", "waiting", "the mask helper has not answered for half a minute: steps wait for it"),
        ("helper_back", "info", "", "the mask helper answers again"),
        ("held", "info", "device seq verdict why", "an update is refused for now and will be sent again"),
        ("left_out", "warning", "device largest least why", "a device gets no model: it takes no message of that size"),
        ("limited", "warning", "why largest chunk", "the broker takes smaller messages than those configured"),
        ("local_steps", "info", "steps recipe", "the local steps of a training have changed"),
        ("order_refused", "warning", "verb version why", "an order about registered versions cannot be followed"),
        ("other_base", "warning", "device version", "a device trained from another model of the same number"),
        ("parts", "info", "largest earlier", "the size of the model's parts has changed"),
        ("progress", "info", "device way done total", "progress of a large update"),
        ("put_back", "warning", "announced version", "the store is an old copy: a new generation begins"),
        (
            "quarantine",
            "warning",
            "device seconds",
            "nothing is taken from a device for a while, after many refusals",
        ),
        ("readmitted", "info", "device", "the operator let a withdrawn device in again"),
        ("refused_always", "warning", "device verdict why refused", "the last updates of a device were all refused"),
        (
            "sum_too_long",
            "warning",
            "factor devices",
            "a sum of masked updates is longer than its devices may make it: it is scaled down",
        ),
        ("registered", "info", "version by pruned", "a release was registered"),
        ("release", "info", "version step devices", "a version was released for training"),
        ("reloaded", "info", "file changed", "the settings file was read again"),
        ("repeat", "info", "device seq verdict", "an update came again and was answered as before"),
        ("report", "info", "device version metrics", "a device reported its result on its own data"),
        ("revoked", "warning", "device dropped", "a device was revoked by the operator"),
        ("room", "info", "", "the store's disk has room again"),
        ("serve", "info", "version step", "a version was released for use"),
        ("silent", "info", "devices records bodies checkpoints", "devices were erased after the retention period"),
        ("standby", "warning", "state why", "the standby follows, copies, is away, waits or takes over"),
        ("shard_ended", "warning", "site code", "the process of a shard has ended, and is started again"),
        ("start", "info", "lineage version step", "the store is open"),
        ("statistics_constant", "warning", "channels", "inputs that never changed are not scaled"),
        (
            "statistics_limited",
            "warning",
            "device why",
            "a device's statistics are beyond all others' in one input: there they count with a limit",
        ),
        ("statistics_off", "warning", "device why", "a device's statistics are unlike the others' and left out"),
        ("stop", "info", "version step", "the store is closed"),
        (
            "suspected",
            "warning",
            "device",
            "sums with a device's updates lay far from the others, time after time: its updates are held back",
        ),
        ("trial", "info", "finding why evidence", "what the devices' results say of the candidate"),
        ("undamped", "info", "damping rate", "the server's rate rises again"),
        ("unsummed", "warning", "dropped why", "the mask helper will never sum these updates: they are dropped"),
        ("unlike", "warning", "device why", "a device has other inputs than the model: nothing is taken from it"),
        ("untold", "warning", "events", "events of devices that never sent an accepted update were not reported"),
        ("untrusted", "warning", "why", "a message on the aggregator's own topics is not ours and will be replaced"),
        ("update", "info", "device seq verdict why base staleness weight size", "a verdict on an update"),
        ("withdrawn", "info", "device", "the operator withdrew a device"),
    ),
    "device": _kinds(
        ("aggregator", "info", "state why version", "the aggregator's state has changed"),
        ("alarm", "warning", "why", "the device's own credentials expire soon"),
        ("alias", "info", "alias version", "the version that is used for predictions has changed"),
        ("authorities", "info", "digest", "the trusted authorities have changed"),
        ("awake", "info", "", "the device wakes"),
        ("clock", "warning", "why", "the device's clock contradicts the announcements"),
        ("connected", "info", "", "connected to the broker"),
        ("disconnected", "warning", "why refused", "the connection to the broker was lost or refused"),
        ("evaluated", "info", "version examples metrics", "result of the model on the device's own data"),
        (
            "evaluation_failed",
            "error",
            "version why",
            "the owner's `evaluate` raised, or returned no `Scores`; the device trains on",
        ),
        ("fetch_failed", "warning", "why", "a model could not be fetched; it is tried again"),
        ("full", "error", "why", "the disk is full: an update is lost, and none is trained for a while"),
        ("hindered", "info", "why", "training waits for a condition or a budget"),
        ("intake", "warning", "useless sources", "whether useful rows come has changed"),
        (
            "keeps",
            "warning",
            "version newer why",
            "the version in use is kept: a newer one is worse on its own rows",
        ),
        ("keeps_no_more", "info", "version why", "the version is kept no more"),
        ("killed_training", "warning", "why killed", "a training's process was killed; it is tried again"),
        (
            "losses_failed",
            "error",
            "version why",
            "the owner's `losses` raised: new models are used untried",
        ),
        ("moved", "info", "site", "another aggregator settles its updates now: a gateway, or the federation's own"),
        ("site_values", "info", "site devices", "the site's values of its own tensors are here"),
        ("muted", "info", "why", "sending and fetching wait for a condition or a budget"),
        ("on_model_failed", "error", "why version", "the owner's `on_model` raised"),
        ("expired", "info", "rows", "rows were removed because of their age"),
        ("withheld", "info", "updates", "the owner has withdrawn consent: updates that waited are not sent"),
        ("predicts_only", "error", "why", "the device takes no part until it is started again; predictions go on"),
        ("progress", "info", "way done total", "progress of a large transfer"),
        (
            "receipt",
            "info",
            "outbox seq verdict why retry_after repeat weight staleness body",
            "a verdict on an update has arrived",
        ),
        ("refused", "warning", "topic why", "the broker refused a message"),
        ("renewal_refused", "error", "why", "new credentials are refused"),
        ("renewed", "warning", "kept unsure", "the outbox continues under a new identity"),
        ("renewing", "info", "", "new credentials were requested"),
        ("rotted", "warning", "why lost", "the outbox was damaged; what could be read was kept"),
        ("settled", "info", "outbox through", "updates are settled and forgotten"),
        ("sleeping", "info", "wakes seconds", "the device sleeps"),
        ("stored", "info", "seq size residual written", "an update is in the outbox"),
        (
            "survey_answered",
            "info",
            "rows why",
            "an operator's survey got statistics of this device's rows, or why not",
        ),
        ("trained", "info", "version seconds", "a training has ended"),
        ("trainer_failed", "error", "why failed", "the owner's training function raised"),
        ("training", "info", "version", "a training begins"),
        ("trouble", "warning", "why", "the aggregator dropped what this device sent, or doubts it"),
        ("unannounced", "warning", "why", "no aggregator has announced the federation on this broker"),
        ("uncounted", "warning", "why", "the device begins to count what it spends of its ε, from 0"),
        ("unfit", "warning", "why", "a training's result cannot be sent"),
        ("unhindered", "info", "why", "training continues"),
        ("unmuted", "info", "why", "sending and fetching continue"),
        ("untrusted", "warning", "channel why", "an announcement is not trusted"),
        (
            "unusual",
            "warning",
            "federation version label class prediction score threshold alarm",
            "a prediction is unusual",
        ),
        (
            "usual",
            "info",
            "federation version label class prediction score threshold alarm",
            "predictions are usual again",
        ),
    ),
    "helper": _kinds(
        ("connected", "info", "", "connected to the broker"),
        ("dealt", "info", "sums number", "sums of masks were computed for the aggregator"),
        ("disconnected", "warning", "why refused", "the connection to the broker was lost"),
        ("dropped", "warning", "why", "a message that is no deposit of the aggregator"),
        ("restored", "warning", "", "the ledger is an old copy: the opening keys were erased"),
    ),
    "gateway": _kinds(
        ("caught_up", "info", "number", "all that the site's devices gave is with the federation, up to this sum"),
        ("foreign", "error", "lineage", "the federation has another store than the one that this site took part in"),
        ("given_up", "warning", "updates why", "waiting updates were dropped, because they may have been sent before"),
        ("passed_on", "info", "version step", "a version of the federation is on its way to the site's devices"),
        ("site_averaged", "info", "devices size", "the mean of the site's own tensors is on its way to its devices"),
        ("sum", "info", "number base updates devices", "a sum of the devices' updates is on its way to the federation"),
    ),
    "authority": _kinds(
        ("alarm", "warning", "why", "a credential expires soon"),
        ("connected", "info", "", "connected to the broker"),
        ("disconnected", "warning", "why refused", "the connection to the broker was lost"),
        ("renewed", "info", "granted refused", "requests for new credentials were answered"),
        ("renewed_here", "info", "whose", "a certificate on this machine was renewed"),
        ("todo", "warning", "commands", "the broker could not be notified: run the commands"),
    ),
}
"""Events by service and name."""

LOG = EventKind("log", "warning", ("logger", "message"), "a line of the log that no event stands for")
"""What `--log json` writes for a line of Python's `logging`."""

FAILED = EventKind("failed", "error", ("message",), "the command ended with an error that the user can fix")
"""What `--log json` writes before exit code 2."""

_ALARMING = frozenset({"stalled", "held", "full"})


def level_of(service: Service, event: Mapping[str, object]) -> str:
    """The level of an event; `info` for an unknown one."""
    if event["event"] == "health" and event.get("state") in _ALARMING:
        return "warning"
    kind = EVENTS[service].get(str(event["event"]))
    return "info" if kind is None else kind.level


def undeclared(service: Service, event: Mapping[str, object]) -> Iterator[str]:
    """What of an event the registry does not have: its name, or names of fields."""
    kind = EVENTS[service].get(str(event["event"]))
    if kind is None:
        yield str(event["event"])
        return
    own = {"event", "time", *(("device",) if service == "device" else ())}
    yield from sorted(event.keys() - own - set(kind.fields))
