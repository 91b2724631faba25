"""The collector of cycles waits for a good time."""

import subprocess
import sys

SCRIPT = """
import gc, weakref
from shared import collector

class Node: pass

def cycle():
    one, two = Node(), Node()
    one.other, two.other = two, one
    return weakref.ref(one)

kept = cycle()
collector.keep_loaded()
found = cycle()
for _ in range(100):
    [[] for _ in range(100)]  # as many objects as would bring a collection otherwise, if they stayed
held = [[] for _ in range(2000)]
assert found() is not None, "collected in the midst of work"
collector.collect()
assert found() is None, "not collected when there was time"
assert kept() is not None, "what was loaded is left alone"

one, two = Node(), Node()
one.other, two.other = two, one
old = weakref.ref(one)
for _ in range(3):
    collector.collect()  # it grows old while it is used
del one, two
collector.collect()
assert old() is not None, "only the young are looked at each time"
for _ in range(400):
    collector.collect()
assert old() is None, "what has grown old is freed in the end"
"""


def test_cycles_are_freed_when_asked_for_and_not_before() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
