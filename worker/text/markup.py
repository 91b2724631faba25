"""Which tokens of a vocabulary are marks of any convention, and hence never text."""

from worker.text.harmony import detect_harmony
from worker.text.reasoning import CONVENTIONS as REASONING
from worker.text.tools import ARGUMENT, CONVENTIONS, SEPARATOR
from worker.text.vocabulary import Vocabulary


def mark_ids(vocabulary: Vocabulary) -> set[int]:
    """Their ids, whether or not the vocabulary calls them special."""
    texts = [mark for pair in REASONING for mark in pair]
    texts += [mark.text for convention in CONVENTIONS for mark in convention.marks()]
    texts += [SEPARATOR, ARGUMENT, "[ARGS]", "[CALL_ID]", *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")]
    return {id for text in texts if (id := vocabulary.id_of(text)) is not None} | set(detect_harmony(vocabulary))
