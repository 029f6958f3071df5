"""Merkle trees as in Certificate Transparency: RFC 9162, section 2.1. Every hash is SHA-256.

A tree is read through a function `node(level, place)`, which returns the hash of the complete subtree over the leaves
`place · 2^level` to `(place + 1) · 2^level − 1`, and raises `LookupError` if it is not kept.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

HASH = 32
"""Bytes of a hash."""
MOST = 63
"""Most hashes of a path: a tree has at most 2^63 leaves."""
Node = Callable[[int, int], bytes]
EMPTY = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf: of a zero byte and the entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node: of a one byte and its two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


def completed(place: int, leaf: bytes, node: Node) -> Iterator[tuple[int, int, bytes]]:
    """The nodes that the leaf at `place` completes when it is appended, itself first: level, place, hash."""
    level = 0
    yield level, place, leaf
    while place & 1:
        leaf = node_hash(node(level, place - 1), leaf)
        level, place = level + 1, place >> 1
        yield level, place, leaf


def root(node: Node, size: int) -> bytes:
    """The root of the first `size` leaves: MTH of section 2.1.1."""
    return _subtree(node, 0, size) if size else EMPTY


def inclusion(node: Node, place: int, size: int) -> list[bytes]:
    """The path from the leaf at `place` to the root of the first `size` leaves: PATH of section 2.1.3.1."""
    if not 0 <= place < size:
        raise ValueError(f"there is no leaf {place} among {size}")
    path: list[bytes] = []
    first, last = 0, size
    while last - first > 1:
        middle = first + _split(last - first)
        if place < middle:
            path.append(_subtree(node, middle, last))
            last = middle
        else:
            path.append(_subtree(node, first, middle))
            first = middle
    return path[::-1]


def consistency(node: Node, before: int, size: int) -> list[bytes]:
    """The proof that the first `before` of `size` leaves are those of an earlier tree: PROOF of section 2.1.4.1."""
    if not 0 < before <= size:
        raise ValueError(f"no earlier tree has {before} of {size} leaves")
    path: list[bytes] = []
    first, last, known = 0, size, True
    while before < last:
        middle = first + _split(last - first)
        if before <= middle:
            path.append(_subtree(node, middle, last))
            last = middle
        else:
            path.append(_subtree(node, first, middle))
            first, known = middle, False
    if not known:
        path.append(_subtree(node, first, last))
    return path[::-1]


def includes(root: bytes, size: int, place: int, leaf: bytes, path: Sequence[bytes]) -> bool:
    """Whether a path proves that a leaf is in a tree: section 2.1.3.2."""
    if not 0 <= place < size:
        return False
    here, last, found = place, size - 1, leaf
    for hash_ in path:
        if last == 0:
            return False
        if here & 1 or here == last:
            found = node_hash(hash_, found)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            found = node_hash(found, hash_)
        here, last = here >> 1, last >> 1
    return last == 0 and found == root


def extends(before: int, earlier: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a proof shows that a tree is an earlier one with leaves appended: section 2.1.4.2."""
    if before == size:
        return earlier == root and not path
    if not 0 < before < size or not path:
        return False
    hashes = [earlier, *path] if before & (before - 1) == 0 else list(path)
    here, last = before - 1, size - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    old = new = hashes[0]
    for hash_ in hashes[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            old, new = node_hash(hash_, old), node_hash(hash_, new)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            new = node_hash(new, hash_)
        here, last = here >> 1, last >> 1
    return last == 0 and old == earlier and new == root


def _split(size: int) -> int:
    """The largest power of two below a size above 1."""
    return 1 << ((size - 1).bit_length() - 1)


def _subtree(node: Node, first: int, last: int) -> bytes:
    """The hash of the leaves `first` to `last − 1`, of which `first` begins a subtree."""
    size = last - first
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, first >> level)
    middle = first + _split(size)
    return node_hash(_subtree(node, first, middle), _subtree(node, middle, last))
