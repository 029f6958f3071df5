"""Events of devices and aggregators as text, one line each."""

from collections.abc import Mapping
from typing import Any

from midge.wire.plurals import counted


def sentence(event: Mapping[str, Any]) -> str:
    """The line for an event; empty if it is not shown."""
    match event:
        case {"event": "start", "version": version, "step": step, "digest": digest} if version:
            return f"The aggregator continues at version {version}, step {step}, model {digest[:8]}."
        case {"event": "start", "version": version, "step": step}:
            return "A new model begins." if not version else f"Continues at version {version}, step {step}."
        case {"event": "reloaded", "file": file, "changed": changed}:
            return f"Read {file} again: {', '.join(changed) + ' changed.' if changed else 'nothing has changed.'}"
        case {"event": "connected"}:
            return "Connected to the broker."
        case {"event": "standby", "state": state, "why": why}:
            return f"Standby: {state}{'. ' + why if why else '.'}"
        case {"event": "disconnected", "why": why}:
            return f"Not connected: {why}"
        case {"event": "unannounced", "why": why}:
            return str(why)
        case {"event": "aggregator", "state": "lost" | "stopped" as state, **_rest}:
            gone = "has stopped" if state == "stopped" else "is lost: it was killed, or its network failed"
            return f"The aggregator {gone}. Until it is back, updates wait here."
        case {"event": "aggregator", "state": "paused", "why": why}:
            return f"The federation is paused: {why or 'its operator gave no reason'}."
        case {"event": "aggregator", "state": state, "why": why}:
            return f"The aggregator is {state}{', but: ' + why if why else '.'}"
        case {"event": "device", "device": device, "state": state}:
            return f"{device}: {state}"
        case {"event": "update", "device": device, "verdict": "accepted", "staleness": tau, "weight": weight}:
            return f"{device}: accepted, {counted(tau, 'step')} stale, weight {weight:.2f}"
        case {"event": "update", "device": device, "verdict": verdict, "why": why}:
            return f"{device}: update refused ({verdict}): {why}"
        case {"event": "repeat", "device": device, "seq": seq}:
            return f"{device}: update {seq} is a duplicate"
        case {"event": "held", "device": device, "verdict": verdict, "why": why}:
            return f"{device}: update refused for now ({verdict}): {why}"
        case {"event": "clipped", "device": device, "scale": scale}:
            return f"{device}: its update is out of scale, {scale:.1g} of it is applied"
        case {"event": "encoder" | "left_out" | "fetched_again", "device": device, "why": why}:
            return f"{device}: {why}"
        case {"event": "parts", "largest": largest}:
            much = "as large as the broker takes" if largest is None else f"of at most {counted(largest, 'byte')}"
            return f"The model's parts are {much} from now on, for the online devices."
        case {"event": "damped", "damping": damping}:
            return f"Updates grow from round to round: the server's rate is damped to {damping:.3g} of what it was."
        case {"event": "alpha", "rate": rate, "limit": limit, "devices": devices, "bounded": bounded}:
            then = f"it is lowered to {limit:.2g}" if bounded else f"{limit:.2g} would not (bounded=False)"
            return f"An alpha of {rate:g} lets {devices} devices swing the model: {then}."
        case {"event": "undamped", "damping": damping}:
            return f"Updates no longer grow: the server's rate is at {damping:.3g} of what it was."
        case {"event": "local_steps", "steps": None}:
            return "A training has as many local steps as the devices' recipes say."
        case {"event": "local_steps", "steps": steps, "recipe": recipe}:
            return f"A training has {counted(steps, 'local step')} from now on; the devices' recipes have {recipe}."
        case {"event": "health", "state": state, "why": why, "before": before}:
            was = f" (was {before})" if before != state else ""
            return f"Health: {state}{was}{': ' + why if why else '.'}"
        case {"event": "alarm", "why": why}:
            return f"ALARM: {why}"
        case {"event": "refused_always", "device": device, "refused": refused, "verdict": verdict, "why": why}:
            return f"{device}: none of its last {refused} updates was accepted; the last one ({verdict}): {why}"
        case {"event": "evaluation_failed", "version": version, "why": why}:
            return f"Version {version} could not be evaluated: {why}"
        case {"event": "freeze", "devices": devices}:
            return f"Statistics of {counted(devices, 'device')} are pooled: the model's inputs are normalised by them."
        case {"event": "statistics_off", "device": device, "why": why}:
            return f"{device}: its statistics are unlike the others', {why}"
        case {"event": "statistics_limited", "device": device, "why": why}:
            return f"{device}: its statistics count with a limit, {why}"
        case {"event": "statistics_constant", "channels": channels}:
            return f"These inputs were the same in all rows, and are not scaled: {', '.join(channels[:20])}."
        case {"event": "features", "features": features}:
            return f"The model's inputs are {', '.join(features)}: two devices agree."
        case {"event": "unlike", "device": device, "why": why}:
            return f"{device}: nothing is taken from it, {why}"
        case {"event": "release", "version": version, "devices": devices}:
            return (
                f"Version {version} released, with the work of {counted(devices, 'device')}."
                if devices
                else (f"Version {version} released.")
            )
        case {"event": "evaluation", "version": version, "metrics": metrics}:
            return f"Version {version}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        case {"event": "federated_evaluation", "devices": devices, "metrics": metrics}:
            return f"On the data of {counted(devices, 'device')}: " + "; ".join(
                _spread(*item) for item in metrics.items()
            )
        case {"event": "registered", "version": version, "by": by}:
            return f"Version {version} is registered, by {by}."
        case {"event": "alias", "device": _, "alias": "", "version": _}:
            return "Predicts with the newest model: no registered version has a name."
        case {"event": "alias", "device": _, "alias": alias, "version": version}:
            return f"Predicts with the {alias}, version {version}."
        case {"event": "keeps", "version": version, "newer": newer, "why": why}:
            return f"Keeps version {version} for predictions: version {newer} is worse here, {why}."
        case {"event": "keeps_no_more", "version": version, "why": why}:
            return f"Keeps version {version} no more: {why}."
        case {"event": "losses_failed", "why": why}:
            return f"New models are used untried: {why}"
        case {"event": "alias", "champion": champion, "candidate": candidate, "share": share, "why": why, **rest}:
            back = "" if rest.get("rolled_back") is None else f"Rolled back to version {rest['rolled_back']}. "
            tried = f", and {share:.0%} of {whom(rest.get('where', {}))} try version {candidate}" if candidate else ""
            return (
                f"{back}Devices use {f'version {champion}' if champion else 'the newest version'}{tried}. {why}".strip()
            )
        case {"event": "order_refused", "verb": verb, "why": why}:
            return f"The order to {verb} a version is refused: {why}."
        case {"event": "serve", "version": version}:
            return f"Version {version} released for use."
        case {"event": "dropped", "topic": topic, "why": why, "untold": untold}:
            return f"Dropped what came on {topic}: {why} ({counted(untold, 'other')} before it unreported)"
        case {"event": "trouble", "why": why}:
            return f"The aggregator has a problem with what this device sends: {why}"
        case {"event": "moved", "site": site}:
            return f"Updates are settled by {f'the site {site}' if site else 'the federation'} from now on."
        case {"event": "site_values", "site": site, "devices": devices}:
            return f"The tensors of the site {site} are here, the mean of {counted(devices, 'device')}."
        case {"event": "site_averaged", "devices": devices}:
            return f"The mean of the site's own tensors of {counted(devices, 'device')} passed on."
        case {"event": "passed_on", "version": version}:
            return f"Version {version} passed on to the site's devices."
        case {"event": "sum", "updates": updates, "devices": devices, "base": base}:
            return f"Sent the sum of {counted(updates, 'update')} of {counted(devices, 'device')} from version {base}."
        case {"event": "shard_ended", "site": shard, "code": code}:
            return f"The process of {shard} ended with {code}; it is started again."
        case {"event": "given_up", "updates": updates, "why": why}:
            return f"Dropped {counted(updates, 'update')} that may have been sent before: {why}."
        case {"event": "helper_away", "waiting": waiting}:
            return f"The mask helper does not answer: {counted(waiting, 'update')} wait for it."
        case {"event": "helper_back"}:
            return "The mask helper answers again."
        case {"event": "unsummed", "dropped": dropped, "why": why}:
            return f"The mask helper will never sum {counted(dropped, 'update')}, which are dropped: {why}"
        case {"event": "sum_too_long", "factor": factor, "devices": devices}:
            return f"A sum of {devices} devices is longer than they may make it; {factor:.2g} of it is applied."
        case {"event": "suspected", "device": device}:
            return f"Sums with updates of {device} lie far from the others: its updates are held back for now."
        case {"event": "dealt", "sums": sums, "number": number}:
            return f"{counted(sums, 'sum')} of masks for the aggregator, up to number {number}."
        case {"event": "restored"}:
            return "The ledger is an old copy: the opening keys are erased, and what was sealed to them is refused."
        case {"event": "renewing"}:
            return "Has asked for new credentials."
        case {"event": "renewal_refused", "why": why}:
            return f"New credentials are refused: {why}"
        case {"event": "authorities"}:
            return "The authorities to trust have changed."
        case {"event": "renewed", "granted": granted, "refused": refused} if granted or refused:
            return f"New credentials: {granted} granted, {refused} refused."
        case {"event": "renewed_here", "whose": whose}:
            return f"The certificate of {whose} was renewed here."
        case {"event": "todo", "commands": commands}:
            return f"The broker was not notified; to notify it: {'; '.join(commands)}"
        case {"event": "revoked", "device": device, "dropped": dropped}:
            return f"{device}: revoked; {counted(dropped, 'update')} of it waited and will not be applied"
        case {"event": "readmitted", "device": device}:
            return f"{device}: let in again by the operator"
        case {"event": "untold", "events": events}:
            return f"{counted(events, 'event')} of devices that never sent an update unreported."
        case {"event": "dropped", "topic": topic, "why": why}:
            return f"Dropped what came on {topic}: {why}"
        case {"event": "training", "version": version}:
            return f"Training from version {version}."
        case {"event": "receipt", "seq": seq, "verdict": verdict, "why": why}:
            return f"Update {seq}: {verdict}{': ' + why if why else ''}"
        case {"event": "hindered", "why": why}:
            return f"Training waits: {why}."
        case {"event": "unhindered"}:
            return "Training continues."
        case {"event": "survey_answered", "rows": rows, "why": why}:
            what = (
                f"The operator got no statistics of the rows: {why}" if why else f"Statistics of {counted(rows, 'row')}"
            )
            return f"{what}." if why else f"{what} went to the operator, for a survey."
        case {"event": "muted", "why": why}:
            return f"Sending and fetching wait:  {why}."
        case {"event": "unmuted"}:
            return "Sending and fetching continue."
        case {"event": "killed_training", "why": why}:
            return f"A training is lost: {why}."
        case {"event": "sleeping", "seconds": 0.0}:
            return "Everything is done; ending."
        case {"event": "sleeping", "seconds": seconds}:
            return f"Sleeps for {seconds / 60:.0f} min." if seconds >= 120 else f"Sleeps for {seconds:.0f} s."
        case {"event": "awake"}:
            return "Wakes."
        case {"event": "killed", "what": what, "version": version, "digest": digest} if what == "the aggregator":
            return f"The aggregator is killed at version {version}, model {digest[:8]}."
        case {"event": "killed", "what": what}:
            return f"{_capital(what)} is killed, without DISCONNECT."
        case {"event": "restarted", "what": what}:
            return f"{_capital(what)} is started again."
        case {"event": "joined", "device": device}:
            return f"{device}: joins late"
        case {"event": "left", "device": device}:
            return f"{device}: leaves for good, with DISCONNECT"
        case {"event": "vanished", "device": device}:
            return f"{device}: leaves for good, without DISCONNECT"
        case {"event": "progress", "way": way, "done": done, "total": total, **rest}:
            what = "the model" if way == "down" else "an update"
            whose = f"{rest['device']}: " if "device" in rest else ""
            return f"{whose}{what}, {bar(done, total)} of {total / 1e6:.1f} MB"
        case {"event": "untrusted", "why": why}:
            return f"A message of the aggregator is not trusted:  {why}."
        case {"event": "put_back", "announced": announced, "version": version}:
            known = "A backup was restored" if announced is None else f"Version {announced} is known"
            return f"{known}, and this store has version {version}. A new generation begins."
        case {"event": "other_base", "device": device, "version": version}:
            return f"{device}: trained from a model other than version {version} of here"
        case {"event": "fetch_failed" | "unfit" | "refused" | "clock", "why": why}:
            return str(why)
    return ""


def whom(where: Mapping[str, str]) -> str:
    """The devices with these capabilities."""
    named = " and ".join(f"{name}={value}" for name, value in where.items())
    return f"the devices with {named}" if named else "the devices"


def bar(done: int, total: int) -> str:
    """A progress bar, twenty marks wide: `[##########··········] 50 %`."""
    full = 20 * done // max(total, 1)
    return f"[{'#' * full}{'·' * (20 - full)}] {100 * done // max(total, 1)} %"


def _capital(what: str) -> str:
    """Capitalise, unless it is a device's name."""
    return what[0].upper() + what[1:] if what.startswith("the ") else what


def _spread(name: str, found: Mapping[str, Any]) -> str:
    """A metric over devices: the mean of all rows, the worst tenth, and the slow third if known."""
    slow = found["classes"].get("slow")
    tail = "" if slow is None else f", slow third {slow:.4g}"
    return (
        f"{name} {found['mean']:.4g} ({found['lowest']:.4g} to {found['highest']:.4g}, tenth {found['low']:.4g}{tail})"
    )
