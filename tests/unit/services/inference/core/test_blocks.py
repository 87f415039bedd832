from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.core.blocks import BlockPool, block_hash, root_hash


def chain(*blocks: tuple[int, ...], salt: str = "", adapter: str | None = None) -> list[bytes]:
    hashes = [root_hash(salt, adapter)]
    for tokens in blocks:
        hashes.append(block_hash(hashes[-1], tokens))
    return hashes[1:]


def sealed(pool: BlockPool, hashes: list[bytes]) -> list[int]:
    blocks = pool.take(len(hashes))
    for block, hashed in zip(blocks, hashes, strict=True):
        pool.seal(block, hashed)
    return blocks


def test_a_hash_depends_on_every_token_before_on_the_salt_and_on_the_adapter():
    one, two = (1, 2), (3, 4)
    first, second = chain(one, two)
    assert chain(one, two) == [first, second]
    assert chain((9, 2), two)[1] != second
    assert chain((1, 2 + 2**32))[0] != first
    others = [("a", None), ("", "a"), ("", ""), ("a", ""), ("1:", None), ("a+", "b"), ("a", "+b")]
    roots = {root_hash(salt, adapter) for salt, adapter in [("", None), *others]}
    assert len(roots) == len(others) + 1
    assert chain(one, salt="a")[0] != first != chain(one, adapter="a")[0]


def test_blocks_are_found_as_far_as_they_are_here_and_have_two_holders_then():
    pool, hashes = BlockPool(8, 2), chain((1, 2), (3, 4), (5, 6))
    blocks = sealed(pool, hashes[:2])
    found = pool.find(hashes)
    assert found == blocks
    pool.share(found)
    pool.give_back(blocks)
    assert [pool.num_holders(block) for block in blocks] == [1, 1]
    assert pool.num_used == 2
    pool.give_back(found)
    assert (pool.num_used, pool.num_free) == (0, 8)


def test_what_nobody_holds_is_found_until_it_is_taken_the_longest_unused_and_the_last_of_it_first():
    pool = BlockPool(4, 2)
    old, new = chain((1, 2), (3, 4)), chain((7, 8), (9, 9))
    old_blocks, new_blocks = sealed(pool, old), sealed(pool, new)
    pool.give_back(old_blocks)
    pool.give_back(new_blocks)
    assert pool.find(old) == old_blocks
    assert pool.take(1) == old_blocks[1:]
    assert pool.find(old) == old_blocks[:1]
    pool.share(old_blocks[:1])  # It is in use now: the others are taken before it.
    assert sorted(pool.take(2)) == sorted(new_blocks)
    assert not pool.can_take(1)
    assert pool.find(old) == old_blocks[:1]
    assert pool.find(new) == []


def test_blocks_found_but_idle_cannot_be_taken_beside_themselves():
    pool, hashes = BlockPool(3, 2), chain((1, 2), (3, 4))
    pool.give_back(sealed(pool, hashes))
    found = pool.find(hashes)
    assert pool.can_take(3)
    assert pool.can_take(1, beside=found)
    assert not pool.can_take(2, beside=found)


def test_content_that_is_known_already_is_not_sealed_a_second_time():
    pool, hashes = BlockPool(4, 2), chain((1, 2))
    first, second = sealed(pool, hashes), sealed(pool, hashes)
    assert pool.find(hashes) == first
    pool.give_back(second)
    pool.give_back(first)
    assert pool.find(hashes) == first
    assert pool.num_findable == 1
    assert sorted(pool.take(4)) == [0, 1, 2, 3]


class PoolMachine(RuleBasedStateMachine):
    """Tables of blocks come, share, grow and go; the pool's books always say what the tables say."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, 1)
        self.tables: list[list[int]] = []
        self.meant: dict[int, bytes] = {}  # What a block was last sealed as.

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4), salt=st.sampled_from(["", "x"]))
    def begin(self, tokens: list[int], salt: str) -> None:
        hashes = chain(*((token,) for token in tokens), salt=salt)
        found = self.pool.find(hashes)
        assert [self.meant[block] for block in found] == hashes[: len(found)]
        num_new = len(hashes) - len(found)
        if not self.pool.can_take(num_new, beside=found):
            return
        self.pool.share(found)
        new = self.pool.take(num_new)
        assert not set(new) & {block for table in self.tables for block in table}
        for block, hashed in zip(new, hashes[len(found) :], strict=True):
            self.meant[block] = hashed
            self.pool.seal(block, hashed)
        self.tables.append([*found, *new])

    @precondition(lambda self: self.tables and self.pool.can_take(1))
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        self.tables[data.draw(st.integers(0, len(self.tables) - 1))] += self.pool.take(1)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.pool.give_back(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @invariant()
    def the_books_are_right(self) -> None:
        held = [block for table in self.tables for block in table]
        for block in range(self.pool.num_blocks):
            assert self.pool.num_holders(block) == held.count(block)
        assert self.pool.num_used == len(set(held))
        assert self.pool.num_used + self.pool.num_free == self.pool.num_blocks
        assert self.pool.can_take(self.pool.num_free)
        assert not self.pool.can_take(self.pool.num_free + 1)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
