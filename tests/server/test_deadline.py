"""A time limit is kept, but not against a client whose bytes lay there while the server itself did not run."""

from openglm.server.deadline import GRACE_S, HELD_UP_S, Deadline


class Loop:
    """Time that stands still until a test moves it; timers fire in order, however late."""

    def __init__(self) -> None:
        self.now, self.timers = 100.0, []

    def time(self):
        return self.now

    def call_later(self, seconds, callback):
        self.timers.append([self.now + seconds, callback])
        timer = self.timers[-1]

        class Handle:
            def cancel(self):
                timer[1] = lambda: None

        return Handle()

    def move(self, seconds):
        self.now += seconds
        due, self.timers = [t for t in self.timers if t[0] <= self.now], [t for t in self.timers if t[0] > self.now]
        for _, callback in sorted(due, key=lambda timer: timer[0]):
            callback()


def expired_after(*moves, cancel_after=None):
    loop, expired = Loop(), []
    deadline = Deadline(loop, 10.0, lambda: expired.append(loop.now - 100.0))
    for number, seconds in enumerate(moves):
        if number == cancel_after:
            deadline.cancel()
        loop.move(seconds)
    return expired


def test_a_limit_expires_at_its_time():
    assert expired_after(9.9) == []
    assert expired_after(9.9, 0.1) == [10.0]
    assert expired_after(10.0 + HELD_UP_S) == [10.0 + HELD_UP_S]


def test_a_process_that_was_held_up_first_looks_at_what_has_arrived():
    assert expired_after(60.0) == []
    assert expired_after(60.0, GRACE_S) == [60.0 + GRACE_S]
    assert expired_after(60.0, 30.0) == []  # held up again
    assert expired_after(60.0, 30.0, GRACE_S) == [90.0 + GRACE_S]


def test_a_limit_that_was_kept_never_expires():
    assert expired_after(9.0, 60.0, 60.0, cancel_after=1) == []
    assert expired_after(60.0, 60.0, cancel_after=1) == []
