"""Secure aggregation with a mask helper: one message a device, and no interaction among devices.

A device turns its delta into integers q from −levels to levels, expands a fresh seed to a mask, and sends

    y = q + mask  (mod 2^b)    sealed to the aggregator
    seed                       sealed to the helper, a process that another party runs

The helper answers with m = Σ w_i·mask_i of a set of devices; the aggregator computes Σ w_i·q_i = Σ w_i·y_i − m. Neither
sees one device's q. b is chosen so that Σ w_i·levels < 2^(b−1), and so the sum is exact.

With noise (`Masking.noise`), each device adds its share of a discrete Gaussian to q before the mask, so that the sum is
differentially private against everyone, the aggregator included.

Masks are ChaCha20 keystreams (RFC 8439) of 32-byte seeds from the operating system, each seed used once.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from midge.wire import chunks, frames, sealing, signing
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Update
from midge.wire.messages.masking import MaskEntry, Masking, Ticket
from midge.wire.noise import noise_share
from midge.wire.schema import Vector

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
"""Elements of the ring, below 2^b, of any shape."""

HEAVIEST = 4
"""Largest weight of an update in a sum."""
LEAST_RING = 8
"""Fewest bits of a ring that devices accept unless their owner says otherwise; sums of two devices fit into 7."""
DIGEST = 8
"""Bytes of the base's digest in a masked update."""
HIDING = 0.5
"""Noise of a sum, in multiples of `levels`, that hides a device whatever the others send: ε is 12 at δ = 10⁻⁵."""
NOISY_LEVELS = 1024
"""Levels of a delta with noise: its integers are cut towards zero, which loses little on a grid this fine."""
SEED = 32
_TAIL = 8
"""Standard deviations of the noise that fit into the ring."""
_PREFIX = "masked:"


def codec(ring: int) -> str:
    """The codec of masked updates, as their header names it."""
    return f"{_PREFIX}{ring}"


def is_masked(name: str) -> bool:
    """Whether this is the codec of masked updates."""
    return name.startswith(_PREFIX)


# ------------------------------------------------------------------------ arithmetic


def reach(devices: int, levels: int, noise: float = 0.0, honest: int = 0) -> int:
    """The largest absolute value of a sum of this many devices' integers, at weights of 1.

    With noise (`Masking.noise`), but for a probability below 1e-14 for each value.
    """
    return devices * levels + (math.ceil(_TAIL * noise * math.sqrt(devices / honest)) if noise else 0)


def room(ring: int, levels: int, noise: float = 0.0, honest: int = 0) -> int:
    """The most devices whose sum is exact in a ring, at weights of 1."""
    low, high = 0, 2**ring
    while low < high:
        middle = (low + high + 1) // 2
        fits = reach(middle, levels, noise, honest) < 2 ** (ring - 1)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def ring_for(devices: int, levels: int, noise: float = 0.0, honest: int = 0) -> int:
    """The fewest bits b in which a sum of this many devices' integers is exact, at any weights if there is no noise."""
    return (reach(devices, levels, noise, honest) * (1 if noise else HEAVIEST)).bit_length() + 1


def keystream(seed: bytes, count: int, width: int = 4) -> bytes:
    """The first `count` words of `width` bytes of ChaCha20's keystream, counter and nonce 0."""
    from cryptography.hazmat.primitives.ciphers import Cipher  # noqa: PLC0415 - an extra on devices
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20  # noqa: PLC0415

    stream: bytes = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(width * count))
    return stream


def mask(seed: bytes, count: int, ring: int) -> Words:
    """The mask of a seed: uniform modulo 2^b, because 2^b divides the range of a word."""
    width = 2 if ring <= 16 else 4
    words = np.frombuffer(keystream(seed, count, width), f"<u{width}").astype(np.uint32)
    kept: Words = words & np.uint32(2**ring - 1)
    return kept


def quantised(values: Vector, scale: float, levels: int, seed: bytes) -> Integers:
    """Values as integers of levels, rounded at random without bias, and limited to ±levels."""
    random = np.frombuffer(keystream(seed, values.size), "<u4") * 2.0**-32
    return np.clip(np.floor(values.astype(np.float64) / scale + random), -levels, levels).astype(np.int64)


def shortened(values: Vector, scale: float, levels: int) -> Integers:
    """Values as integers of levels, cut towards zero, with an L2 norm of at most `levels`, exactly.

    Noise hides a bounded change: rounding at random could exceed the bound.
    """
    with np.errstate(over="ignore"):
        exact = values.astype(np.float64) / scale
    if not np.isfinite(exact).all():
        raise ValueError(f"the values cannot be told in levels of {scale:g}")
    while True:
        integers = np.trunc(exact).astype(np.int64)
        if (norm := float(np.sqrt(np.sum(np.square(exact))))) <= levels:
            if int(np.sum(np.square(integers))) <= levels**2:
                return integers
            norm = levels
        exact *= levels / norm * (1 - 2.0**-40)


def noisy(integers: Integers, noise: float, honest: int, entropy: Callable[[int], bytes] = os.urandom) -> Integers:
    """Integers with one device's share of the noise of a sum (`wire.noise.noise_share`)."""
    return integers + noise_share(noise, honest, integers.size, entropy)


def added(integers: Integers, words: Words, ring: int) -> Words:
    """Integers plus elements of the ring."""
    total: Words = ((integers + words) & (2**ring - 1)).astype(np.uint32)
    return total


def weighted(rows: Iterable[tuple[int, Words]], count: int, ring: int) -> Words:
    """Σ w_i·row_i modulo 2^b."""
    total = np.zeros(count, np.uint64)
    for weight, row in rows:
        total += np.uint64(weight) * row
    return (total & np.uint64(2**ring - 1)).astype(np.uint32)


def unmasked(total: Words, masks: Words, ring: int) -> Integers:
    """The signed sum that is left when the sum of the masks is taken away."""
    left = (total.astype(np.int64) - masks) & (2**ring - 1)
    signed: Integers = np.where(left >= 2 ** (ring - 1), left - 2**ring, left)
    return signed


def pack(words: Words, ring: int) -> bytes:
    """Elements of the ring in b bits each, the lowest bit first; the last byte is padded with zeros."""
    bits = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, count=ring, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def size(count: int, ring: int) -> int:
    """Bytes that `pack` makes of this many elements."""
    return -(-count * ring // 8)


def unpack(data: frames.Buffer, count: int, ring: int) -> Words:
    """The inverse of `pack`.

    Raises:
        WireError: the bytes are not of that number.
    """
    if len(data) != size(count, ring):
        raise WireError(f"a masked delta of {count} values has {size(count, ring)} bytes, not {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * ring, bitorder="little").reshape(count, ring)
    rows = np.packbits(bits, axis=1, bitorder="little")
    whole = np.zeros((count, 4), np.uint8)
    whole[:, : rows.shape[1]] = rows
    return whole.view("<u4").reshape(-1).astype(np.uint32)


@lru_cache(maxsize=8)
def places(lineage: bytes, count: int, slices: int, part: int) -> npt.NDArray[np.intp]:
    """Indices of the values that a slice covers, ascending: a random partition, the same for all in a lineage."""
    if slices == 1:
        return np.arange(count)
    key = hashlib.sha256(b"midge/1 slices\0" + lineage).digest()
    order = np.argsort(np.frombuffer(keystream(key, count, 8), "<u8"), kind="stable")
    return np.sort(order[part::slices])


def limited(delta: Vector, clip: float) -> Vector:
    """A delta, scaled down to an L2 norm of at most `clip`."""
    norm = float(np.sqrt(np.sum(np.square(delta, dtype=np.float64))))
    return delta if norm <= clip else (delta * np.float32(clip / norm)).astype(np.float32)


# --------------------------------------------------------------------------- messages


def seed_info(federation: str, device: str, ticket: Update | Ticket, lineage: bytes, entry: MaskEntry) -> bytes:
    """HPKE's `info` for a seed. Without outbox and seq, because an outbox with a new identity renumbers its updates."""
    of = [ticket.generation, ticket.base, ticket.base_digest, ticket.plan]
    of += [entry.ring, entry.levels, entry.scale, entry.slices, entry.part, entry.least]
    return b"midge/1 seed\0" + frames.pack([federation, device, lineage, *of])


def terms(announcement: Announcement) -> bytes:
    """A digest of what decides, besides a device's rows, what a training gives: the model and the plan, 16 bytes."""
    plan = frames.encode(announcement.plan.model_copy(update={"seed": 0}))
    return hashlib.sha256(b"midge/1 terms\0" + announcement.digest + plan).digest()[:16]


def ticket_of(update: Update, device: str = "") -> Ticket:
    """The ticket of a masked update."""
    return Ticket(
        device=device,
        generation=update.generation,
        base=update.base,
        base_digest=update.base_digest,
        plan=update.plan,
        outbox=update.outbox,
        seq=update.seq,
        sha256=update.sha256,
        entry=update.entry,
    )


def voucher(update: Update | Ticket, lineage: bytes, entry: bytes) -> bytes:
    """The bytes that a device signs for the helper: which update the entry belongs to."""
    of = [update.generation, update.base, update.base_digest, update.plan, update.outbox, update.seq, update.sha256]
    return frames.pack([lineage, *of, entry])


def signed_entry(key: signing.PrivateKey, federation: str, device: str, update: Update) -> Update:
    """A masked update whose entry is signed; from then on its identity is fixed."""
    context = signing.of_device(federation, device)
    signature = key.sign(signing.MASKED, context, voucher(update, update.lineage, update.entry))
    return update.model_copy(update={"entry": update.entry + signature})


def read_entry(ticket: Ticket, federation: str, lineage: bytes, key: signing.PublicKey) -> MaskEntry:
    """The entry of a ticket, which this device has signed.

    Raises:
        BadSignature: it has not.
        WireError: it is no entry.
    """
    plain, signature = ticket.entry[: -signing.SIGNATURE], ticket.entry[-signing.SIGNATURE :]
    context = signing.of_device(federation, ticket.device)
    if not key.verifies(signature, signing.MASKED, context, voucher(ticket, lineage, plain)):
        raise signing.BadSignature("its entry is not signed by this device")
    return parse_entry(ticket.entry)


def parse_entry(signed: bytes) -> MaskEntry:
    """An entry, given with its signature, which is not verified.

    Raises:
        WireError: it is none.
    """
    header, _ = frames.decode(signed[: -signing.SIGNATURE])
    return frames.validate(MaskEntry, header)


def open_seed(federation: str, lineage: bytes, ticket: Ticket, entry: MaskEntry, private: bytes) -> bytes:
    """The seed of an entry, for the helper.

    Raises:
        WireError: it is not sealed to this key for this update.
    """
    seed = sealing.unseal(entry.seed, private, seed_info(federation, ticket.device, ticket, lineage, entry))
    if len(seed) != SEED:
        raise WireError(f"a seed has {SEED} bytes, not {len(seed)}")
    return seed


def covered(update: Update, body: frames.Buffer, schema_size: int, wanted: Masking) -> None:
    """Check that a masked update is as the plan wants it, and that sums of as many devices as it asks for are exact.

    Raises:
        WireError: it is not.
    """
    entry = parse_entry(update.entry)
    ours = (wanted.ring, wanted.levels, wanted.slices, update.base % wanted.slices, wanted.noise, wanted.honest)
    if (entry.ring, entry.levels, entry.slices, entry.part, entry.noise, entry.honest) != ours or update.codec != codec(
        wanted.ring
    ):
        raise WireError("its ring, levels, slice or noise are not those of the plan: train from the newest model")
    if entry.scale != wanted.scale:
        raise WireError("its scale is not that of the plan: train from the newest model")
    if entry.least > (most := room(wanted.ring, wanted.levels, wanted.noise, wanted.honest)):
        raise WireError(f"it asks for {entry.least} devices in a sum, and the plan's ring has room for {most}")
    count = places(update.lineage, schema_size, entry.slices, entry.part).size
    if len(body) != size(count, entry.ring):
        raise WireError(f"a masked delta of {count} values has {size(count, entry.ring)} bytes, not {len(body)}")


def answer_info(federation: str, lineage: bytes) -> bytes:
    """HPKE's `info` for an answer of the helper."""
    return b"midge/1 dealt\0" + frames.pack([federation, lineage])


def roster_digest(keys: Mapping[str, signing.PublicKey]) -> bytes:
    """A digest of devices' names and public keys, by which two parties can tell whether they mean the same devices."""
    listed = sorted((name, key.encoded) for name, key in keys.items())
    return hashlib.sha256(b"midge/1 roster\0" + frames.pack(listed)).digest()[:16]


@dataclass(frozen=True, slots=True)
class SealTo:
    """Whom a seed is sealed to, and for whom."""

    key: bytes
    """The helper's public key."""
    federation: str
    device: str
    least: int
    """Fewest devices in a sum that the device's owner allows."""
    terms: bytes = b""
    """Of its training."""


class Masked(NamedTuple):
    """A masked delta."""

    update: Update
    """The header; its entry is signed when the update is sent."""
    body: bytes
    sent: Vector
    """The values that the integers stand for, 0 outside of the slice; of shape (size,)."""


def masked(delta: Vector, masking: Masking, update: Update, to: SealTo, seed: bytes | None = None) -> Masked:
    """Mask a delta with a fresh seed.

    Args:
        delta: what is to be sent, with the residual of earlier updates, of shape (size,).
        masking: the plan's.
        update: the header, without codec, size, checksum and entry.
        to: whom the seed is sealed to.
        seed: only tests give one.
    """
    ring, part = masking.ring, update.base % masking.slices
    where = places(update.lineage, delta.size, masking.slices, part)
    wanted = limited(delta, masking.clip)[where]
    if masking.noise:
        cut = shortened(wanted, masking.scale, masking.levels)
        integers = noisy(cut, masking.noise, masking.honest)
    else:
        integers = quantised(wanted, masking.scale, masking.levels, os.urandom(SEED))
    seed = seed or os.urandom(SEED)
    body = pack(added(integers, mask(seed, where.size, ring), ring), ring)
    sent = np.zeros(delta.size, np.float32)
    sent[where] = integers * np.float32(masking.scale)
    entry = MaskEntry(
        key=sealing.key_id(to.key),
        ring=ring,
        levels=masking.levels,
        scale=masking.scale,
        slices=masking.slices,
        part=part,
        least=max(to.least, masking.least),
        seed=bytes(sealing.overhead(to.key)),
        noise=masking.noise,
        honest=masking.honest,
        terms=to.terms,
    )
    info = seed_info(to.federation, to.device, update, update.lineage, entry)
    entry = entry.model_copy(update={"seed": sealing.seal(seed, to.key, info)})
    about = {"codec": codec(ring), "size": len(body), "sha256": chunks.checksum(body), "entry": frames.encode(entry)}
    return Masked(update.model_copy(update=about), body, sent)


def weights(bases: Sequence[int], ring: int, levels: int, least: int) -> tuple[int, ...]:
    """Integer weights of the updates of a sum from the numbers of their bases: 4 / √(1 + τ), rounded, at least 1.

    They differ only if no residue of the sum belongs to few devices: Σ w_i·q_i modulo m reveals the sum of those whose
    weight m does not divide. If these are fewer than `least`, or the ring is too small, all weights are 1.
    """
    newest = max(bases)
    found = [max(1, round(HEAVIEST / (1 + newest - base) ** 0.5)) for base in bases]
    exposed = any(0 < sum(weight % m != 0 for weight in found) < least for m in range(2, HEAVIEST + 1))
    fits = sum(found) * levels < 2 ** (ring - 1)
    return tuple(found) if fits and not exposed and len(set(found)) > 1 else (1,) * len(bases)
