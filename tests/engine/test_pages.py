"""The page pool: states, sharing, eviction order, and what its check notices."""

import pytest

from openglm.engine.cache_history import CacheHistory
from openglm.engine.page_key import page_key, root_key
from openglm.engine.pages import PagePool

ROOT = root_key()


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
    pool.release(pages) if misuse == "release" else pool.publish(pages[0], page_key(root_key(), [1]), root_key())
    assert not pool.balanced and f"page {pages[0]} is {misuse}" in pool.check([])
    assert (pool.num_free, pool.num_held, pool.num_cached) == (2, 0, 0)


def test_published_pages_survive_release_and_go_least_recently_used_tail_first():
    pool = PagePool(3)
    pages = pool.allocate(3)
    keys = [page_key(root_key(), [i]) for i in range(3)]
    for page, key in zip(pages, keys, strict=True):
        pool.publish(page, key, ROOT)
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
    pool.publish(first, key, ROOT)
    pool.publish(second, key, ROOT)
    assert pool.find(key) == first and not pool.is_published(second)
    pool.release([first, second])
    assert (pool.num_free, pool.num_cached) == (1, 1)


def test_keys_depend_on_everything_before_and_on_the_salt():
    root = root_key()
    assert page_key(page_key(root, [1]), [2]) != page_key(page_key(root, [3]), [2])
    assert page_key(root, [1, 2]) != page_key(root, [1])
    others = [{"salt": "a"}, {"adapter": "a"}, {"weight_version": 1}, {"lookahead": 1}, {"salt": "a", "adapter": "b"}, {"salt": "ab"}]
    assert len({root, *(root_key(**other) for other in others)}) == 7


def cached(pool: PagePool, count: int, *, first_token: int = 0) -> list[bytes]:
    """A chain of `count` pages that someone published and released; their keys."""
    pages, parent, keys = pool.allocate(count), ROOT, []
    for i, page in enumerate(pages):
        keys.append(page_key(parent, [first_token + i]))
        pool.publish(page, keys[-1], parent)
        parent = keys[-1]
    pool.release(pages)
    return keys


def test_evicted_pages_go_to_the_host_tier_and_come_back_into_fresh_pages():
    pool = PagePool(3, num_host_pages=4)
    keys = cached(pool, 3)
    taken = pool.allocate(2)
    assert [t.kind for t in pool.take_transfers()] == ["store", "store"] and pool.take_transfers() == []
    assert pool.num_known(keys) == 3 and [pool.find(key) is None for key in keys] == [False, True, True]
    assert pool.acquire(keys, 3) is None, "two pages are held by someone else"
    assert pool.check([taken]) is None and pool.host.num_used == 2
    pool.release(taken)
    pages = pool.acquire(keys, 3)
    assert [t.kind for t in pool.take_transfers()] == ["load", "load"]
    assert [pool.find(key) for key in keys] == pages
    assert pool.check([pages]) is None


def test_a_page_that_is_stored_already_is_evicted_without_another_copy():
    pool = PagePool(2, num_host_pages=2)
    keys = cached(pool, 2)
    for expected in (["store", "store"], ["load", "load"], [], ["load", "load"]):
        pool.release(pool.allocate(2) if expected != ["load", "load"] else pool.acquire(keys, 2))
        assert [t.kind for t in pool.take_transfers()] == expected
    assert (pool.num_stored, pool.num_loaded, pool.num_evicted) == (2, 4, 4)


def test_pages_evicted_by_an_admission_do_not_overwrite_what_it_loads():
    pool = PagePool(2, num_host_pages=2)
    old = cached(pool, 2)
    pool.release(pool.allocate(2))
    recent = cached(pool, 2, first_token=7)
    pool.take_transfers()
    pages = pool.acquire(old, 2)
    assert [t.kind for t in pool.take_transfers()] == ["load", "load"], "the host tier is full of what is needed, so nothing was stored"
    assert pool.num_known(recent) == 0 and pool.history.outcome(recent, 0) == "evicted"
    assert pool.check([pages]) is None


def test_damaged_pages_leave_the_host_tier_too():
    pool = PagePool(2, num_host_pages=2)
    keys = cached(pool, 2)
    pool.release(pool.allocate(2))
    pages = pool.acquire(keys, 2)
    pool.unpublish(pages)
    assert pool.num_known(keys) == 0 and pool.host.num_used == 0 and pool.check([pages]) is None


def test_history_tells_why_a_prefix_ended():
    pool = PagePool(4)
    keys = cached(pool, 3)
    other_end = [*keys[:2], page_key(keys[1], [9])]
    further = [*keys, page_key(keys[2], [9])]
    stranger = [page_key(ROOT, [9])]
    found = {
        name: pool.history.outcome(k, pool.num_known(k))
        for name, k in {"full": keys, "diverged": other_end, "extended": further, "cold": stranger, "short": []}.items()
    }
    assert found == {name: name for name in found}
    pool.release(pool.allocate(2))
    assert pool.history.outcome(keys, pool.num_known(keys)) == "evicted"
    pool.forget()
    assert pool.history.outcome(keys, pool.num_known(keys)) == "cold"


def test_history_remembers_a_bounded_number_of_evictions():
    history = CacheHistory(num_remembered=2)
    for i in range(3):
        history.appear(bytes([i]), ROOT)
        history.evict(bytes([i]))
    assert [history.outcome([bytes([i])], 0) for i in range(3)] == ["cold", "evicted", "evicted"]
    assert history.check([]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool, pages: pool._references.__setitem__(pages[0], 2),
        lambda pool, pages: pool._free.append(pages[0]),
        lambda pool, pages: setattr(pool, "_num_held", 0),
        lambda pool, pages: pool._free.pop(),
        lambda pool, pages: pool.host._free.pop(),
        lambda pool, pages: pool.host.pin([]) or setattr(pool.host, "_pinned", {b"k"}),
        lambda pool, pages: pool.history.appear(b"k", ROOT),
    ],
)
def test_check_notices_damage(damage):
    pool = PagePool(4, num_host_pages=2)
    pages = pool.allocate(2)
    assert pool.check([pages]) is None
    damage(pool, pages)
    assert pool.check([pages]) is not None
