"""Merkle trees of RFC 9162: the functions of section 2.1 as they are written there, for every small tree."""

import hashlib

import pytest

from midge.wire import merkle

ENTRIES = [bytes([number]) * number for number in range(40)]


def mth(entries: list[bytes]) -> bytes:
    """MTH, by the definition in section 2.1.1."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = max(2**power for power in range(20) if 2**power < len(entries))
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


@pytest.fixture(scope="module")
def nodes() -> dict[tuple[int, int], bytes]:
    found: dict[tuple[int, int], bytes] = {}

    def node(level: int, place: int) -> bytes:
        return found[level, place]

    for place, entry in enumerate(ENTRIES):
        found |= {(level, at): each for level, at, each in merkle.completed(place, merkle.leaf_hash(entry), node)}
    return found


def test_every_entry_is_proved_in_every_tree_and_no_other(nodes: dict[tuple[int, int], bytes]) -> None:
    def node(*where: int) -> bytes:
        return nodes[where[0], where[1]]

    assert merkle.root(node, 0) == mth([])
    for size in range(1, len(ENTRIES) + 1):
        root = merkle.root(node, size)
        assert root == mth(ENTRIES[:size])
        for place in range(size):
            path = merkle.inclusion(node, place, size)
            leaf = merkle.leaf_hash(ENTRIES[place])
            assert merkle.includes(root, size, place, leaf, path)
            assert not merkle.includes(root, size, place, merkle.leaf_hash(b"other"), path)
            assert not merkle.includes(root, size, (place + 1) % size, leaf, path) or size == 1
            assert not merkle.includes(root, size, place, leaf, [*path, root])
            if path:
                assert not merkle.includes(root, size, place, leaf, path[:-1])
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion(node, 3, 3)


def test_every_tree_is_proved_to_extend_every_earlier_one(nodes: dict[tuple[int, int], bytes]) -> None:
    def node(*where: int) -> bytes:
        return nodes[where[0], where[1]]

    for size in range(1, len(ENTRIES) + 1):
        root = merkle.root(node, size)
        for before in range(1, size + 1):
            path = merkle.consistency(node, before, size)
            assert merkle.extends(before, mth(ENTRIES[:before]), size, root, path)
            assert not merkle.extends(before, mth([b"x", *ENTRIES[1:before]]), size, root, path)
            if before < size:
                assert not merkle.extends(before, mth(ENTRIES[:before]), size, mth(ENTRIES[1 : size + 1]), path)
                assert not merkle.extends(before, mth(ENTRIES[:before]), size, root, path[:-1])
    with pytest.raises(ValueError, match="no earlier tree"):
        merkle.consistency(node, 4, 3)


def test_a_node_looks_like_no_leaf() -> None:
    """The bug: without the prefixes of section 2.1.1, two hashes are an entry as well."""
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)
