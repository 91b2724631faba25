"""Python's collector of cycles, kept out of the way of requests."""

import gc
import itertools

_MIDDLE, _ALL = 20, 400  # every so often more is looked at than what is new

_numbers = itertools.count(1)


def keep_loaded() -> None:
    """Leave alone what is there by now, which lives as long as the process, and come less often by itself.

    By default a collection comes with every 700 objects that are left behind, in the midst of whatever is done then.
    Whoever gets requests calls `collect` when nobody waits.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def collect() -> None:
    """Free the cycles among what was made since the last time, and now and then those among all that is left.

    The latter as well, because each call puts off the collections that come by themselves.
    """
    number = next(_numbers)
    gc.collect(2 if number % _ALL == 0 else 1 if number % _MIDDLE == 0 else 0)
