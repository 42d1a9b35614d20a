"""The page pool: states, sharing, eviction order, and its accounting under any sequence of operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from openglm.engine.pages import PagePool, page_key, root_key


def test_pages_are_handed_out_once_and_come_back():
    pool = PagePool(4)
    pages = pool.allocate(3)
    assert pages is not None and len(set(pages)) == 3
    assert pool.allocate(2) is None  # and nothing was taken
    assert (pool.num_free, pool.num_held) == (1, 3)
    pool.release(pages)
    assert (pool.num_free, pool.num_held) == (4, 0)


@pytest.mark.parametrize("misuse", ["release", "publish"])
def test_a_misuse_is_noted_and_changes_nothing(misuse):
    pool = PagePool(2)
    pages = pool.allocate(1)
    pool.release(pages)
    assert pool.balanced and pool.check([]) is None
    pool.release(pages) if misuse == "release" else pool.publish(pages[0], page_key(root_key(), [1]))
    assert not pool.balanced and f"page {pages[0]} is {misuse}" in pool.check([])
    assert (pool.num_free, pool.num_held, pool.num_cached) == (2, 0, 0)


def test_published_pages_survive_release_and_go_least_recently_used_tail_first():
    pool = PagePool(3)
    pages = pool.allocate(3)
    keys = [page_key(root_key(), [i]) for i in range(3)]
    for page, key in zip(pages, keys, strict=True):
        pool.publish(page, key)
    pool.release(pages)
    assert (pool.num_free, pool.num_cached) == (0, 3)
    taken = pool.allocate(1)
    assert taken == [pages[2]], "the tail of a released sequence is evicted before its head"
    assert [pool.find(key) is not None for key in keys] == [True, True, False]
    pool.share([pages[0]])
    pool.release([pages[0]])
    assert pool.allocate(1) == [pages[1]], "page 0 was used more recently"


def test_second_page_with_the_same_content_stays_private():
    pool = PagePool(2)
    first, second = pool.allocate(2)
    key = page_key(root_key(), [1])
    pool.publish(first, key)
    pool.publish(second, key)
    assert pool.find(key) == first and not pool.is_published(second)
    pool.release([first, second])
    assert (pool.num_free, pool.num_cached) == (1, 1)


def test_keys_depend_on_everything_before_and_on_the_salt():
    root = root_key()
    assert page_key(page_key(root, [1]), [2]) != page_key(page_key(root, [3]), [2])
    assert page_key(root, [1, 2]) != page_key(root, [1])
    assert len({root, root_key(salt="a"), root_key(weight_version=1), root_key(lookahead=1)}) == 4


class PoolMachine(RuleBasedStateMachine):
    """Sequences that allocate, share published prefixes, publish, release; the pool must agree with a model of it."""

    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages):
        self.pool = PagePool(num_pages)
        self.tables: list[list[int]] = []
        self.names = 0

    @rule(count=st.integers(0, 6))
    def allocate(self, count):
        available = self.pool.num_available
        pages = self.pool.allocate(count)
        assert (pages is None) == (count > available)
        if pages is not None:
            held = {page for table in self.tables for page in table}
            assert not held & set(pages) and len(set(pages)) == count
            assert not any(self.pool.is_published(page) for page in pages)
            self.tables.append(pages)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def publish(self, data):
        table = data.draw(st.sampled_from(self.tables))
        for page in table:
            self.pool.publish(page, page_key(root_key(), [data.draw(st.integers(0, 8))]))

    @rule(token=st.integers(0, 8))
    def share(self, token):
        page = self.pool.find(page_key(root_key(), [token]))
        if page is not None:
            self.pool.share([page])
            self.tables.append([page])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def unpublish(self, data):
        table = data.draw(st.sampled_from(self.tables))
        self.pool.unpublish(table)
        assert not any(self.pool.is_published(page) for page in table)

    @rule()
    def forget(self):
        self.pool.forget()
        assert self.pool.num_cached == 0

    @invariant()
    def accounting_holds(self):
        assert self.pool.check(self.tables) is None
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_held == self.pool.num_pages


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool, pages: pool._references.__setitem__(pages[0], 2),
        lambda pool, pages: pool._free.append(pages[0]),
        lambda pool, pages: setattr(pool, "_num_held", 0),
        lambda pool, pages: pool._free.pop(),
    ],
)
def test_check_notices_damage(damage):
    pool = PagePool(4)
    pages = pool.allocate(2)
    assert pool.check([pages]) is None
    damage(pool, pages)
    assert pool.check([pages]) is not None
