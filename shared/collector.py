"""Python's collector of cycles, kept out of the way of requests."""

import gc


def keep_loaded() -> None:
    """Leave alone what is there by now, which lives as long as the process, and come less often by itself.

    By default a collection comes with every 700 objects that are left behind, in the midst of whatever is done then.
    Whoever gets requests calls `collect_young` when nobody waits.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def collect_young() -> None:
    """Free the cycles among what was made since the last time."""
    gc.collect(0)
