"""Page pool, host tier and cache history under random operations, against a plain model of what every page and slot holds."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from openglm.engine.page_key import page_key, root_key
from openglm.engine.pages import PagePool

ROOTS = [root_key(), root_key(salt="s")]
PATHS = st.tuples(st.sampled_from(ROOTS), st.lists(st.integers(0, 1), min_size=1, max_size=4))


def chain(path) -> list[bytes]:
    """Keys of the pages along a path of one-token pages."""
    parent, tokens = path
    keys = []
    for token in tokens:
        parent = page_key(parent, [token])
        keys.append(parent)
    return keys


class PageMachine(RuleBasedStateMachine):
    """Sequences take cached prefixes and fresh pages, write the fresh ones, publish them, and give everything back."""

    @initialize(num_pages=st.integers(1, 6), num_host_pages=st.integers(0, 4))
    def start(self, num_pages, num_host_pages):
        self.pool = PagePool(num_pages, num_host_pages=num_host_pages)
        self.tables: list[tuple[list[int], list[bytes], bytes]] = []  # pages, their keys, root
        self.device = [b""] * num_pages
        self.host = [b""] * num_host_pages
        self.published: set[bytes] = set()  # since the last `forget`

    def transfer(self):
        for kind, page, slot in self.pool.take_transfers():
            if kind == "store":
                self.host[slot] = self.device[page]
            else:
                self.device[page] = self.host[slot]

    @rule(path=PATHS, extra=st.integers(0, 3), spare=st.integers(0, 2))
    def acquire(self, path, extra, spare):
        keys = chain(path)
        num_hits = self.pool.num_known(keys)
        outcome = self.pool.history.outcome(keys, num_hits)
        assert (outcome == "full") == (num_hits == len(keys))
        assert outcome not in ("cold", "evicted") or keys[num_hits] not in self.known()
        assert outcome != "evicted" or keys[num_hits] in self.published
        assert outcome != "cold" or num_hits == 0
        before = self.pool.num_available
        on_device = [self.pool.find(key) for key in keys[:num_hits] if self.pool.find(key) is not None]
        idle = sum(1 for page in on_device if self.pool.num_users(page) == 0)
        could = self.pool.could_acquire(keys[:num_hits], len(keys) + extra, spare=spare)
        pages = self.pool.acquire(keys[:num_hits], len(keys) + extra, spare=spare)
        assert could == (pages is not None)
        assert (pages is None) == (len(keys) + extra - len(on_device) + spare > before - idle)
        if pages is None:
            assert self.pool.num_available == before
            return
        assert len(set(pages)) == len(keys) + extra
        self.transfer()
        assert [self.device[page] for page in pages[:num_hits]] == keys[:num_hits], "a hit holds what its key says"
        held = {page for table, _, _ in self.tables for page in table}
        assert not held & set(pages[num_hits:])
        for page, key in zip(pages[num_hits:], [*keys[num_hits:], *[b"private"] * extra], strict=True):
            self.device[page] = key
        self.tables.append((pages, keys, path[0]))

    @rule(paths=st.lists(PATHS, min_size=1, max_size=4))
    def serve(self, paths):
        """Whole requests, one after another: the usual way for pages to become cached and to be evicted."""
        for path in paths:
            count = len(self.tables)
            self.acquire(path, 0, 0)
            if len(self.tables) > count:
                pages, keys, root = self.tables.pop()
                self._publish(pages, keys, root, len(keys))
                self.pool.release(pages)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def publish(self, data):
        pages, keys, root = data.draw(st.sampled_from(self.tables))
        self._publish(pages, keys, root, data.draw(st.integers(0, len(keys))))

    def _publish(self, pages, keys, root, count):
        for index in range(count):
            self.pool.publish(pages[index], keys[index], keys[index - 1] if index else root)
            self.published.add(keys[index])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        pages, _, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(pages)

    @rule(count=st.integers(1, 6))
    def take_and_return_fresh_pages(self, count):
        pages = self.pool.allocate(count)
        if pages is not None:
            self.transfer()
            for page in pages:
                assert not self.pool.is_published(page) and self.pool.num_users(page) == 1
                self.device[page] = b"private"
            self.pool.release(pages)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def damage(self, data):
        pages, keys, _ = data.draw(st.sampled_from(self.tables))
        lost = {key for key in keys if self.pool.find(key) in pages}
        self.pool.unpublish(pages)
        assert not any(self.pool.is_published(page) for page in pages)
        assert not lost & self.known(), "nor can copies be found"

    @rule()
    def forget(self):
        self.pool.forget()
        self.published = set()
        assert self.pool.num_cached == self.pool.host.num_used == 0 and not self.known()

    def known(self):
        return {*self.pool._page_of, *self.pool.host.keys()}

    @invariant()
    def accounting_holds(self):
        pool = self.pool
        assert pool.check(table for table, _, _ in self.tables) is None
        assert pool.num_free + pool.num_cached + pool.num_held == pool.num_pages
        assert pool.host.num_used <= pool.host.num_slots

    @invariant()
    def every_findable_page_holds_what_its_key_says(self):
        pool = self.pool
        assert all(self.device[page] == key for key, page in pool._page_of.items())
        assert all(self.host[slot] == key for key, slot in pool.host._slot_of.items())


PageMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPageMachine = PageMachine.TestCase


@pytest.mark.slow
def test_ten_thousand_sequences_of_operations():
    profile = settings(max_examples=10_000, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(PageMachine, settings=profile)
