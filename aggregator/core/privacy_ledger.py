"""The ledger of differential privacy: what each device has spent of its budget, for as long as the lineage lasts.

A device is charged with the step that contains its update, by the noise of that step: so a change of the strategy
changes nothing that was spent before. An account outlives everything else about its device. A device that is forgotten
keeps its account under the keyed alias of its name, and gets it back when it is readmitted. One that comes under
another name with the same outbox goes on with the account of the first name. Nothing is evicted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.privacy import Privacy
from midge.wire.noise import gaussian_rho

UNKNOWN = 1e12
"""ρ beyond every budget, of a contribution that cannot be accounted for."""
_RANDOM = 2**32
"""Least number of an outbox that tells its device: they are random, of 63 bits."""


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """What the devices of a private federation have spent."""

    budget: float
    """ε of each device."""
    delta: float
    worst: float
    """The largest ε of one device, of those that are gone too."""
    accounts: int
    """Devices that have spent anything, of those that are gone too."""
    exhausted: int
    """Devices whose budget allows no further contribution."""
    bare: int
    """The last step without noise; what devices gave up to there is not accounted for. 0 if there was none."""

    def packed(self) -> dict[str, float]:
        """As plain values."""
        return {
            "budget": self.budget,
            "delta": self.delta,
            "worst": self.worst,
            "accounts": self.accounts,
            "exhausted": self.exhausted,
            "bare": self.bare,
        }


class PrivacyLedger:
    """The accounts of the devices of one lineage. All of it can be rebuilt from the journal."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        """By account, ρ."""
        self._renamed: dict[str, str] = {}
        """By the later name of a device, its account."""
        self._outboxes: dict[int, str] = {}
        """By outbox, the account of the device that it was first charged to."""
        self._least = 0.0
        """ρ of an account that is not known: a store that was put back may have forgotten it."""
        self.given: set[str] = set()
        """Accounts that were charged since the last release: each may give one update to a version, so that a number of
        versions says how much was spent at most."""
        self.bare = 0
        """The last step without noise."""

    def __len__(self) -> int:
        return len(self._spent)

    def account(self, device: str, outbox: int = 0) -> str:
        """The name of a device's account: its own, or that of the name under which its outbox was charged first."""
        if device in self._renamed:
            return self._renamed[device]
        return device if device in self._spent else self._outboxes.get(outbox, device)

    def same(self, device: str, outbox: int, other: str, others: int) -> bool:
        """Whether two names with their outboxes have one account."""
        return self.account(device, outbox) == self.account(other, others) or outbox == others >= _RANDOM

    def spent(self, device: str, outbox: int = 0) -> float:
        """ρ that a device has spent."""
        return self._spent.get(self.account(device, outbox), self._least)

    def affords(self, privacy: Privacy, device: str, outbox: int = 0) -> bool:
        """Whether one more contribution of a device is within its budget."""
        # Sums of floats in any order: without the margin, the last contribution could be lost to rounding.
        return privacy.epsilon_of(self.spent(device, outbox) + privacy.rho) <= privacy.epsilon * (1 + 1e-9)

    def charge(self, device: str, outbox: int, rho: float) -> None:
        """Charge a device with a contribution."""
        account = self.account(device, outbox)
        if account != device:
            self._renamed[device] = account
        if outbox >= _RANDOM:
            self._outboxes.setdefault(outbox, account)
        self._spent[account] = self._spent.get(account, self._least) + rho
        self.given.add(account)

    def charge_sum(self, updates: Iterable[Buffered], noise: float, clip: float) -> None:
        """Charge the devices of the updates in a sum with this noise and clip norm."""
        rho = rho_of(noise, clip)
        for item in updates:
            self.charge(item.device, item.outbox, rho)

    def charge_all(self, rho: float) -> None:
        """Charge every device, because a store that was put back does not know what they spent since."""
        self._least += rho
        for account in self._spent:
            self._spent[account] += rho

    def move(self, device: str, alias: str) -> None:
        """Move a device's account to an alias, or back; added to what is there, so that nothing is lost."""
        account = self._renamed.pop(device, device)
        self._outboxes = {number: to for number, to in self._outboxes.items() if to != account}
        if account == device and account in self.given:
            self.given = self.given - {account} | {alias}
        if account != device:
            self._renamed[alias] = account
        elif account in self._spent:
            self._spent[alias] = self._spent.pop(account) + self._spent.get(alias, 0.0)
            self._renamed = {name: alias if to == account else to for name, to in self._renamed.items()}

    def epsilons(self, privacy: Privacy) -> list[float]:
        """ε of each account."""
        return [privacy.epsilon_of(rho) for rho in self._spent.values()]

    def summary(self, privacy: Privacy) -> PrivacySpent:
        """What the devices have spent, under the budget of a strategy."""
        return PrivacySpent(
            budget=privacy.epsilon,
            delta=privacy.delta,
            worst=privacy.epsilon_of(max(self._spent.values(), default=0.0)),
            accounts=len(self._spent),
            exhausted=sum(not self.affords(privacy, account) for account in self._spent),
            bare=self.bare,
        )

    def dump(self) -> dict[str, Any]:
        """Plain values for `load`."""
        return {
            "spent": [[account, rho] for account, rho in self._spent.items()],
            "renamed": [[name, account] for name, account in self._renamed.items()],
            "outboxes": [[number, account] for number, account in self._outboxes.items()],
            "bare": self.bare,
            "least": self._least,
            "given": sorted(self.given),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from the result of `dump`."""
        self._spent = dict(state["spent"])
        self._renamed, self._outboxes, self.bare = dict(state["renamed"]), dict(state["outboxes"]), state["bare"]
        self._least, self.given = state.get("least", 0.0), set(state.get("given", ()))

    def load_counts(self, counts: Iterable[tuple[str, int]], privacy: Privacy) -> None:
        """Restore from the contributions in a checkpoint of an earlier Midge, at the noise of now."""
        self._spent = {device: given * privacy.rho for device, given in counts if given}


def rho_of(noise: float, clip: float) -> float:
    """ρ of one contribution to a step with this noise and clip norm; `UNKNOWN` without one of them."""
    return gaussian_rho(clip, noise) if noise and clip else UNKNOWN
