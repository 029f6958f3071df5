"""The device's part in secure aggregation: the check of what its owner requires, and the masking of an update."""

import math
import time
from collections.abc import Callable, Sequence

from midge.iot_client.masking_requirement import RequireSecure
from midge.iot_client.training import residual
from midge.iot_client.training.update_encoder import EncodedUpdate, Unfit
from midge.wire import envelopes, masking, sealing
from midge.wire.errors import WireError
from midge.wire.masking import SealTo
from midge.wire.messages import Announcement, Plan, Update
from midge.wire.messages.masking import HelperStatement, Masking
from midge.wire.noise import shared_rho, zcdp_epsilon
from midge.wire.schema import Schema, Vector

_FINEST = 2.0**40
"""Most levels in the clip norm: far more than a ring holds."""


class Masker:
    """Masks the updates of one device.

    Args:
        required: by its owner.
        federation: its name.
        device: the device's name.
        clock: seconds since 1970.
        spent: ρ that the device has spent so far.

    Raises:
        KeyUnusable: the helper's key cannot be read.
    """

    def __init__(
        self,
        required: RequireSecure,
        federation: str,
        device: str,
        clock: Callable[[], float] = time.time,
        spent: Callable[[], float] = lambda: 0.0,
    ) -> None:
        sealing.required()
        self._clock, self._spent = clock, spent
        self._required, self._federation, self._device = required, federation, device
        self._key = required.read_key()

    def objection(self, announcement: Announcement) -> str | None:
        """Why nothing may be trained under this announcement; None if it may."""
        plan, required = announcement.plan.masking, self._required
        if plan is None:
            return "this device sends only masked updates (require_secure), and the plan asks for none"
        if plan.ring < required.ring:
            return f"the plan's ring has {plan.ring} bits, and this device's owner requires {required.ring}"
        if len(announcement.seal_key) != 32:
            return "this device sends only sealed updates, and the aggregator announces no key for that"
        if not announcement.helper:
            return "the mask helper has not stated its keys yet"
        try:
            stated = self._stated(announcement)
        except WireError as error:
            return str(error)
        if required.roster is not None and stated.roster != required.roster:
            return "the mask helper's roster is not the one that this device's owner has pinned"
        try:
            sealing.required(hybrid=len(stated.keys[0].key) == sealing.HYBRID_KEY)
        except ModuleNotFoundError as error:
            return str(error)
        least = max(required.k_min, plan.least, stated.least)
        if stated.devices < least:
            return f"the mask helper's roster has {stated.devices} devices, and a sum needs {least}"
        if plan.clip > plan.scale * _FINEST:
            return f"the plan's clip norm of {plan.clip:g} cannot be told in levels of {plan.scale:g}"
        if least > (most := masking.room(plan.ring, plan.levels, plan.noise, plan.honest or least)):
            return f"a sum needs {least} devices, and the plan's ring has room for {most}"
        return self._noise_objection(announcement.plan, plan, least)

    def _noise_objection(self, whole: Plan, plan: Masking, least: int) -> str | None:
        required = self._required
        if plan.noise and whole.feedback:
            return "the plan adds noise and asks for error feedback, which takes the noise back with the next update"
        if required.epsilon is not None and not plan.noise:
            return f"the plan adds no noise, and this device's owner allows ε = {required.epsilon:g} in all"
        try:
            cost(plan)
        except ValueError as error:
            return f"the plan's noise cannot be accounted for: {error}"
        if required.noise > plan.noise / plan.levels:
            return (
                f"the plan's noise is {plan.noise / plan.levels:.3g} times the norm of a delta, and this device's "
                f"owner requires {required.noise:g}"
            )
        if (required.noise or required.epsilon) and plan.honest > least - required.colluding:
            return (
                f"the plan shares the noise among {plan.honest} devices, and this device's owner trusts "
                f"{least - required.colluding} of {least}"
            )
        return None

    def overspent(self, announcement: Announcement) -> str | None:
        """Why the owner's ε allows no further update under this announcement; None if it does, or there is no limit."""
        epsilon, delta, plan = self._required.epsilon, self._required.delta, announcement.plan.masking
        spent = self._spent()
        if epsilon is None or plan is None or not plan.noise:
            return None
        if spent == math.inf:
            return (
                f"its outbox was put back from a copy, so nothing says how much of ε = {epsilon:g} this device has "
                "spent: a new outbox begins a new count"
            )
        # Sums of floats: without the margin, the last update could be lost to rounding.
        if zcdp_epsilon(spent + cost(plan), delta) <= epsilon * (1 + 1e-9):
            return None
        return (
            f"this device has spent ε = {zcdp_epsilon(spent, delta):.3g} by its own count, and another update would "
            f"exceed the ε = {epsilon:g} that its owner allows"
        )

    @property
    def uncounted(self) -> str | None:
        """That a count of spent privacy begins, and what it leaves out; None if there is one, or no limit."""
        if self._required.epsilon is None or self._spent():
            return None
        return (
            f"this device counts from 0 what it spends of ε = {self._required.epsilon:g}: if it has trained before, "
            "with another outbox or an earlier version, that is not in the count"
        )

    def _stated(self, announcement: Announcement) -> HelperStatement:
        return envelopes.read_statement(announcement.helper, self._federation, [self._key])

    def mask(
        self, delta: Vector, update: Update, announcement: Announcement, schema: Schema, left: bytes | None
    ) -> EncodedUpdate:
        """Mask a delta.

        Args:
            delta: trained minus base, of shape (size,).
            update: the header, which says nothing of the training.
            announcement: of the base.
            schema: of the model.
            left: the packed residual of the update before it.

        Raises:
            Unfit: the helper's keys have expired.
        """
        if (why := self.objection(announcement) or self.overspent(announcement)) is not None:
            raise Unfit(why)
        now = self._clock()
        stated = self._stated(announcement)
        keys = [key for key in stated.keys if now < key.until]
        if not keys:
            raise Unfit(
                "the keys of the mask helper have expired: its newer ones have not arrived, or the clock is wrong"
            )
        plan = announcement.plan
        assert plan.masking is not None
        before = residual.unpack(left, announcement.lineage, schema) if left and plan.feedback else None
        wanted = delta if before is None else delta + before.values
        # The helper's own minimum too: after a restart it may state a lower one, and the shares of noise are for this.
        least = max(self._required.k_min, stated.least)
        to = SealTo(keys[0].key, self._federation, self._device, least, masking.terms(announcement))
        made = masking.masked(wanted, plan.masking, update, to)
        after = None
        if plan.feedback:
            norms: Sequence[Sequence[float]] = [() if before is None else before.norms]
            (kept,) = residual.keep((wanted - made.sent)[None], delta[None], announcement.lineage, schema, norms=norms)
            after = kept.pack()
        return EncodedUpdate(made.update, made.body, after, cost(plan.masking))


def cost(plan: Masking) -> float:
    """ρ of one update in a sum with the noise of a plan; 0 without noise, which nothing accounts for.

    Raises:
        ValueError: there is noise, but too little, or of no honest device.
    """
    return shared_rho(plan.levels, plan.noise, plan.honest) if plan.noise else 0.0


def unmasked_objection(announcement: Announcement) -> str | None:
    """Why a device that masks nothing cannot train under this announcement; None if it can."""
    if announcement.plan.masking is None:
        return None
    return "this federation masks updates: give Device(secure=midge.RequireSecure(helper_key=…)), or --helper-key"
