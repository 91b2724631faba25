"""The demo model that ships with Plexus, its text, its trainer and its score.

`MODEL_ID` is the id it is served under and `MODEL_DIRECTORY` the directory
that is served. Only `worker.demo.train` imports torch.
"""

from pathlib import Path

MODEL_ID = "plexus-demo"
MODEL_DIRECTORY = Path(__file__).parent / "model"
TEXT_DIRECTORY = Path(__file__).parent / "text"
