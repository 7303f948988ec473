"""RFC 6962 trees against known answers and against the recursive definition."""

from __future__ import annotations

import hashlib

import pytest

from state.merkle import (
    CompactRange,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

# Source: the test data of the certificate-transparency project for RFC 6962.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = [
    (0, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (5, 8, [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
]  # fmt: skip
CONSISTENCY = [
    (1, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (6, 8, [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 5, [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]),
]  # fmt: skip
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
MANY = [leaf_hash(bytes([n])) for n in range(33)]


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_the_known_ones(size: int) -> None:
    assert root_hash(HASHES[:size]).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_inclusion_proofs_are_the_known_ones(index: int, size: int, proof: list[str]) -> None:
    assert [item.hex() for item in inclusion_proof(HASHES[:size], index)] == proof


@pytest.mark.parametrize(("old", "new", "proof"), CONSISTENCY)
def test_consistency_proofs_are_the_known_ones(old: int, new: int, proof: list[str]) -> None:
    assert [item.hex() for item in consistency_proof(HASHES[:new], old)] == proof


def test_a_tree_that_grows_leaf_by_leaf_has_the_defined_root_at_every_size() -> None:
    tree = CompactRange()
    for size in range(len(MANY) + 1):
        assert tree.root() == by_definition(MANY[:size])
        assert CompactRange(tree.size, tree.frontier).root() == tree.root()
        assert len(tree.frontier) == bin(size).count("1")
        if size < len(MANY):
            tree.append(MANY[size])


def test_a_frontier_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 subtrees do not make a tree of 4 leaves"):
        CompactRange(4, MANY[:2])


def test_every_inclusion_proof_holds_and_no_altered_one_does() -> None:
    for size in range(1, len(MANY) + 1):
        root = root_hash(MANY[:size])
        for index in range(size):
            proof = inclusion_proof(MANY[:size], index)
            given = {"leaf": MANY[index], "index": index, "size": size, "proof": proof, "root": root}

            def holds(given: dict[str, object] = given, **changed: object) -> bool:
                return verify_inclusion(**{**given, **changed})  # type: ignore[arg-type]

            assert holds()
            assert not holds(leaf=leaf_hash(b"other"))
            assert not holds(root=leaf_hash(b"other"))
            assert not holds(proof=[*proof, root])
            assert not holds(index=size)
            assert not holds(index=-1)
            if proof:
                assert not holds(proof=proof[:-1])
                assert not holds(proof=[leaf_hash(b"other"), *proof[1:]])


def test_every_consistency_proof_holds_and_no_altered_one_does() -> None:
    for new in range(1, len(MANY) + 1):
        for old in range(1, new + 1):
            proof = consistency_proof(MANY[:new], old)
            given = {
                "old_size": old, "old_root": root_hash(MANY[:old]),
                "new_size": new, "new_root": root_hash(MANY[:new]), "proof": proof,
            }  # fmt: skip

            def holds(given: dict[str, object] = given, **changed: object) -> bool:
                return verify_consistency(**{**given, **changed})  # type: ignore[arg-type]

            assert holds()
            assert not holds(old_root=leaf_hash(b"other"))
            assert not holds(new_root=leaf_hash(b"other"))
            assert not holds(proof=[*proof, MANY[0]])
            assert not holds(old_size=new + 1)
            if proof:
                assert not holds(proof=proof[:-1])
                assert not holds(proof=[])


def test_proofs_about_leaves_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="leaf 3 is not in a tree of 3"):
        inclusion_proof(MANY[:3], 3)
    with pytest.raises(ValueError, match="no tree of 0 leaves"):
        consistency_proof(MANY[:3], 0)
