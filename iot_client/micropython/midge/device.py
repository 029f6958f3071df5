"""A device of a federation: it fetches the model, trains, and sends what it learned until a receipt settles it."""

import gc
import os
import time
from hashlib import sha256
from random import getrandbits
from time import sleep_ms, ticks_add, ticks_diff, ticks_ms

from midge import codecs, frames
from midge.feedback import Feedback
from midge.fetch import Fetcher
from midge.link import Link
from midge.model import Model
from midge.mqtt import MQTTException
from midge.outbox import Outbox
from midge.sending import Again, Sending, Timer
from midge.training import Perceptron

_EPOCH = 946684800 if time.gmtime(0)[0] == 2000 else 0
"""Seconds that the board's clock counts from after 1970."""


class Device:
    """A device.

    Args:
        client: of MQTT, not yet connected: `midge.mqtt.MQTTClient`, or that of `umqtt.simple`.
        federation: the federation's name.
        name: the device's, which no other one has.
        rows: its data; None if `train` has its own.
        train: `train(model, plan, tick)`, which changes `model.values` in place, calls `tick()` now and then, and gives
            `{"examples": n, …}`, or None for no update. Without it, `Perceptron` trains on the rows.
        folder: where the outbox and the model lie in flash.
        on_event: called with a word and what it is about.
        root: of all topics.
    """

    def __init__(self, client, federation, name, rows=None, train=None, folder="midge", on_event=None, root="midge/1"):
        try:
            os.mkdir(folder)
        except OSError:
            pass
        self.rows, self._train, self._folder = rows, train or self._train_rows, folder
        self._tell = on_event or (lambda *_: None)
        self.outbox = Outbox(folder)
        self.model = Model()
        self.model.restore(folder + "/model")
        self._feedback = Feedback(folder)
        self._link = Link(client, federation, name, root, self._hear)
        self._largest = getattr(client, "largest", 4096)
        self._fetcher = Fetcher(self._link, self.model, self._largest, self._tell)
        self._sending = Sending(self._link, self.outbox, self._largest, self._tell)
        self._announced = None
        self._tried = None
        """The version that was trained from last, with an update or without."""
        self._greeting, self._pause = Timer(), Timer()
        self._trainings = self._perceptron = None
        self._forget_link()

    def _forget_link(self):
        self._boot, self._state, self._greeted, self._waits = None, "", False, ""
        self._sending.fence = 0

    # ------------------------------------------------------------------------ life

    def run(self, done=None):
        """Take part for ever, or until `done()`, over all connections.

        Raises:
            Stopped: another device has the name, or this one was withdrawn.
        """
        wait = 1000
        while True:
            try:
                self._open()
                while not (done and done()):
                    self._step()
                    if self._greeted:
                        wait = 1000
                self._close("disconnected")
                break
            except Again:
                self._link.close()
            except (OSError, MQTTException) as error:
                self._tell("disconnected", repr(error))
                self._link.close()
                sleep_ms(wait * 3 // 4 + getrandbits(16) % (wait // 2))
                wait = min(60000, 2 * wait)

    def run_once(self, seconds=60, sleep=0):
        """Connect, settle what waits, train once and send it, and leave: after `seconds` at most.

        `sleep` is how many seconds the device will be away. What is not done goes on the next time; True if all was.
        """
        end = ticks_add(ticks_ms(), 1000 * seconds)
        self._trainings = 1
        try:
            self._open()
            while ticks_diff(end, ticks_ms()) > 0:
                self._step()
                if self._rests():
                    self._close("sleeping" if sleep else "disconnected", sleep)
                    return True
            self._close("sleeping" if sleep else "disconnected", sleep)
        except (OSError, MQTTException) as error:
            self._tell("disconnected", repr(error))
        except Again:
            pass
        finally:
            self._link.close()
            self._trainings = None
        return False

    def _rests(self):
        known = self._announced
        if not (self._greeted and known) or self.outbox.update or known["phase"] != "training":
            return False
        return not self._trainings or not self._may_train(known)

    def _open(self):
        self._forget_link()
        for timer in (self._greeting, self._sending.resend):
            timer.stop()
        link = self._link
        link.open(self.outbox.identity, self._hello("lost"), lambda number: self._hello("joining", number=number))
        link.subscribe("aggregator", 1)
        link.subscribe(link.receipt, 1)
        link.subscribe("model/train", 0)

    def _close(self, state, sleep=0):
        wakes = time.time() + _EPOCH + sleep if sleep and time.gmtime()[0] > 2022 else 0
        self._link.publish(self._link.status, self._hello(state, wakes=float(wakes)), True)
        self._link.close()

    def _step(self):
        """Do the next thing and read what has come; wait for it if there is nothing to do."""
        self._link.wait(0 if self._act() else 200)
        skipped = getattr(self._link.client, "skipped", None)
        if skipped:
            self._link.client.skipped = None
            self._tell("too_large", "{1} bytes on {0}".format(*skipped))

    def _act(self):
        """Whether anything was to do."""
        if not self._boot or self._state in ("lost", "stopped"):
            return False
        if not self._greeted:
            return self._if_due(self._greeting, self._greet)
        if self._state != "ready":
            return False
        if self.outbox.update:
            return self._if_due(self._sending.resend, self._sending.send)
        if self._announced and self._pause.over:
            self._pause.due = None
            return self._work(self._announced)
        return False

    def _if_due(self, timer, action):
        due = timer.over
        if due:
            action()
        return due

    # -------------------------------------------------------------------- messages

    def _hear(self, sort, header, body):
        if sort == self._link.receipt:
            if header["kind"] == "trouble":
                self._tell("trouble", header.get("why", ""))
            elif header["kind"] == "receipt" and self._sending.receipt(header):
                self._greeted = True
                self._greeting.stop()
        elif sort == "aggregator":
            self._aggregator(header)
        elif sort == "model/train":
            self._announcement(frames.decode(header["body"])[0])
        elif sort.startswith("model/train/"):
            self._fetcher.take(header, body)
        elif sort == "asked":
            self._link.publish(self._link.status, self._hello("ready", to=header["number"]), True)
        elif sort == "missed" and self._greeted:
            self._link.publish(self._link.status, self._hello("ready"), True)
        elif sort == "damaged":
            self._tell("damaged", header["why"])

    def _aggregator(self, header):
        state = header["state"]
        self._sending.fence = max(self._sending.fence, header.get("token", 0))
        if header["boot"] != self._boot or self._state in ("lost", "stopped"):
            self._greeted = False
            self._greeting.stop()
        self._boot, self._state = header["boot"], state

    def _announcement(self, new):
        known = self._announced
        if new.get("channel", "train") != "train" or new["federation"] != self._link.federation:
            return
        older = known and known["lineage"] == new["lineage"] and _order(new) < _order(known)
        if older and new.get("issued", 0) <= known.get("issued", 0):
            return
        if not known or _version(known) != _version(new) or known.get("frames") != new.get("frames"):
            self._pause.due = None  # it may go now: frames may have been cut to what this device takes
        self._announced = new
        self._sending.cut(new)

    def _hello(self, state, **more):
        model, rows = self.model, self.rows
        header = {"kind": "hello", "state": state, "outbox": self.outbox.identity, "first": self.outbox.first}
        header.update({"next": self.outbox.next, "largest": self._largest})
        if model.lineage:
            header.update({"lineage": model.lineage, "generation": model.generation, "version": model.version})
        if rows and rows.features:
            header["features"] = list(rows.features)
        if self._waits:
            header["waits"] = self._waits
        header.update(more)
        return frames.encode(header)

    def _greet(self):
        self._greeting.start()
        self._link.publish(self._link.status, self._hello("ready"), True)

    def _say_waits(self, why):
        if why != self._waits:
            self._waits = why
            if why:
                self._tell("waits", why)
            self._link.publish(self._link.status, self._hello("ready"), True)

    # -------------------------------------------------------------------- training

    def _work(self, known):
        if known["phase"] == "statistics":
            self._send_statistics(known)
            return False
        if self._trainings == 0 or not self._may_train(known):
            return False
        try:
            if self._fetcher.reach(known):
                self.model.save(self._folder + "/model")
                self._pause.stop()
                self._learn(known)
                return True
        except MemoryError as error:
            self._tell("too_large", repr(error))
        self._pause.start()
        self._link.subscribe("model/train", 0)  # the retained one comes again
        return True

    def _may_train(self, known):
        """Whether the announcement asks this device, and this device can."""
        if self._tried == _version(known) or self.outbox.record.get("trained") == _version(known):
            return False
        asks = known.get("participation", {})
        share = asks.get("share", 1)
        if share < 1:
            lineage, generation, version = _version(known)
            hashed = sha256(f"{lineage.hex()}/{generation}/{version}/{self._link.name}".encode()).digest()
            if int.from_bytes(hashed[:4], "big") >= share * 2.0**32:
                return False
        since = time.time() - self.outbox.record.get("began", -1e9)
        if 0 <= since < max(asks.get("interval", 0), asks.get("rest", 0)):
            return False
        return not self._hindrance(known)

    def _hindrance(self, known):
        rows, why = self.rows, ""
        if rows and rows.count < rows.least:
            why = f"fewer than {rows.least} rows"
        elif rows and rows.features and known.get("features") and list(rows.features) != known["features"]:
            why = "its inputs are not the model's"
        self._say_waits(why)
        return why

    def _learn(self, known):
        began, plan, model = ticks_ms(), known.get("plan", {}), self.model
        self._tried = _version(known)
        model.unfold()
        often = gc.threshold()
        gc.threshold(-1)  # only when the heap is full: all that a training leaves are numbers
        fit = self._train(model, plan, lambda: self._link.wait(0))
        gc.collect()
        gc.threshold(often)
        if not fit:
            return
        if not model.subtract():
            self._tell("diverged", model)
            return
        header = {"lineage": model.lineage, "generation": model.generation, "base": model.version}
        header.update({"base_digest": model.digest[:8], "plan": plan.get("revision", 0)})
        header["seconds"] = ticks_diff(ticks_ms(), began) / 1000
        header.update(fit)
        record, left, norms = self.outbox.record, None, ()
        if plan.get("feedback", True):
            norms = self._feedback.add(model, record)
        encoder = codecs.Encoder(model, plan.get("codec", "uq:4|rice"))
        if norms and encoder.codec.startswith("uq"):
            left = self._feedback.keep(model, encoder, norms, record)
        header["codec"] = encoder.codec
        self.outbox.store(encoder.write, header, left=left, trained=self._tried, began=time.time())
        self._tell("trained", header)
        if self._trainings:
            self._trainings -= 1
        self._sending.resend.stop()

    def _train_rows(self, model, plan, tick):
        if not self._perceptron or self._perceptron.values is not model.values:
            self._perceptron = None
            self._perceptron = Perceptron(model)
        return self._perceptron.train(self.rows, plan, tick)

    def _send_statistics(self, known):
        self._pause.start()
        if self._hindrance(known) or not self.rows:
            return
        asked = [(each["name"], each["channels"]) for each in known.get("moments", ())]
        body = b"".join(self.rows.moments(*each) for each in asked)
        if len(body) == 24 * sum(channels for _, channels in asked):
            header = {"kind": "statistics", "lineage": known["lineage"], "names": asked}
            self._link.publish(self._link.update, frames.encode(header, body))
        else:
            self._say_waits("the federation asks for other statistics than those of its rows")


def _order(known):
    return known.get("epoch", 0), known.get("generation", 0), known["version"]


def _version(known):
    return [known["lineage"], known.get("generation", 0), known["version"]]
