"""The draft model of a model: a smaller one of the same vocabulary, asked for guesses (`worker.engine.draft_model`).

It is named by the model's option `draft`: a source in the catalogue, which the agent turns into a directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.models.errors import DraftMismatch

OPTION = "draft"
PASS_TOKENS = 256  # that a draft model computes at a time, and one for each slot


def draft_path(options: Mapping[str, Any], device_kind: str) -> Path | None:
    """The directory of the draft model that is to be loaded; None: there is none to load.

    The path for CUDA devices has no use for one: its recorded steps are of one token a row.
    """
    is_cuda = device_kind == "cuda" and bool(options.get("cuda", True))
    if not options.get(OPTION) or not options.get("speculate", True) or is_cuda:
        return None
    return Path(str(options[OPTION]))


def check_vocabularies(model: Path, draft: Path) -> None:
    """Raises DraftMismatch, with the first difference, unless every token has the same id and text in both."""
    from worker.text.checkpoint import Checkpoint  # not for those who only plan
    from worker.text.vocabulary import Vocabulary

    ours, theirs = (Vocabulary.load(Checkpoint.read(path)) for path in (model, draft))
    for id in range(max(ours.size, theirs.size)):
        if ours.content(id) != theirs.content(id):
            raise DraftMismatch(model, draft, id, ours.content(id), theirs.content(id))
