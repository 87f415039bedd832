"""Blocks of keys and values: who holds which, and which may be read again.

A full block is known by its hash, which covers all tokens up to its end, so that equal beginnings are found
block by block (as in vLLM's automatic prefix caching). A block that nobody holds any more stays findable until
it is taken for something else, the least recently used first.

    pool = BlockPool(num_blocks, block_size)
    found = pool.find(hashes)             the leading blocks that are here
    if pool.can_take(3, beside=found):
        pool.share(found)
        blocks = found + pool.take(3)
    pool.seal(blocks[2], hashes[2])       its tokens are computed: others may find it
    pool.give_back(blocks)
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

_DIGEST_BYTES: Final = 32


def root_hash(cache_salt: str, adapter: str | None) -> bytes:
    """The parent of first blocks. Sequences of different salts or adapters have no hash in common."""
    name = b"" if adapter is None else b"+" + adapter.encode()
    salt = cache_salt.encode()
    return hashlib.blake2b(b"%d:%b%b" % (len(salt), salt, name), digest_size=_DIGEST_BYTES).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """A full block's hash. parent: the hash of the block before it, or a root's.

    BLAKE2b (RFC 7693): a stranger who could make two beginnings collide could read another's answer out of it.
    """
    return hashlib.blake2b(parent + array("Q", tokens).tobytes(), digest_size=_DIGEST_BYTES).digest()


class BlockPool:
    """Keeps count of fixed blocks, named 0 to num_blocks - 1. Each act on one block is O(1)."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # Nobody's, and nothing to be found in them.
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # Nobody's but findable, least recently used first.

    @property
    def num_free(self) -> int:
        """How many can be taken."""
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        """How many are held by somebody."""
        return self.num_blocks - self.num_free

    @property
    def num_findable(self) -> int:
        """How many have a hash, whether held or not."""
        return len(self._by_hash)

    def num_blocks_of(self, num_tokens: int) -> int:
        """How many blocks so many tokens fill or begin."""
        return -(-num_tokens // self.block_size)

    def num_holders(self, block: int) -> int:
        """How many sequences hold it."""
        return self._num_holders[block]

    def holds(self, hashed: bytes) -> bool:
        """Whether a block of this hash is here."""
        return hashed in self._by_hash

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the leading hashes that are here, up to the first that is not. They are not held yet."""
        found: list[int] = []
        for hashed in hashes:
            block = self._by_hash.get(hashed)
            if block is None:
                break
            found.append(block)
        return found

    def can_take(self, num_blocks: int, *, beside: Sequence[int] = ()) -> bool:
        """Whether so many can be taken after those `beside`, which `find` told, are shared."""
        num_idle = sum(1 for block in beside if not self._num_holders[block])
        return num_blocks + num_idle <= self.num_free

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for blocks that `find` told."""
        for block in blocks:
            if not self._num_holders[block]:
                del self._idle[block]
            self._num_holders[block] += 1

    def take(self, num_blocks: int) -> list[int]:
        """Blocks for new content, each with one holder. Check with `can_take` first."""
        return [self._take_one() for _ in range(num_blocks)]

    def seal(self, block: int, hashed: bytes) -> None:
        """A held block is full and computed: let it be found. Where its content is known already, it is not."""
        if hashed not in self._by_hash and self._hashes[block] is None:
            self._hashes[block] = hashed
            self._by_hash[hashed] = block

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less for each. A sequence's blocks in its order: the last are the first to be taken again."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if self._hashes[block] is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def _take_one(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            hashed = self._hashes[block]
            assert hashed is not None
            del self._by_hash[hashed]
            self._hashes[block] = None
        self._num_holders[block] = 1
        return block
