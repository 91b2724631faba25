"""From a rendered prompt with marks for its images to token ids with room for them."""

from collections.abc import Callable

from msgspec import Struct

from shared.messages import Prompt
from worker.models.image_layout import Layout, TooLopsided
from worker.models.vision import Vision
from worker.text.conversation import image_parts
from worker.text.errors import PromptError
from worker.text.images import Picture, PictureReader


class PromptImage(Struct, frozen=True):
    """An image in a prompt: its file, the name of its contents, rows and columns of tokens, and where these are.

    `runs` are (first position, how many), in order.
    """

    data: bytes
    digest: bytes
    grid: tuple[int, int]
    runs: list[tuple[int, int]]


class Reading(Struct, frozen=True):
    """A prompt as the model gets it."""

    ids: list[int]
    images: list[PromptImage] = []


class Sight:
    """Puts images into prompts of one model.

    Args:
        vision: the model's eyes.
        mark: the token that stands for an image in what the chat template renders.
    """

    def __init__(self, vision: Vision, mark: str) -> None:
        self.mark = mark
        self._vision = vision
        self._pictures = PictureReader()

    def read(self, prompt: Prompt, text: str, tokens: Callable[[str], list[int]]) -> Reading:
        """The ids of the rendered `text` by `tokens`, each mark as many ids as its image has. Raises `PromptError`."""
        parts = image_parts(prompt.messages or [])
        pictures = self._pictures.read_all(parts)
        between = text.split(self.mark)
        if len(between) != len(pictures) + 1:
            raise PromptError(
                f"The messages have {len(pictures)} images, and the prompt that the chat template makes of them has "
                f"{len(between) - 1} places for images: this model takes them in messages of users only, or a text "
                f"contains its mark for images, {self.mark}.",
                "messages",
            )
        layouts = [self._layout(picture, place) for (place, _), picture in zip(parts, pictures, strict=True)]
        laid = between[0] + "".join(
            layout.text(self.mark) + rest for layout, rest in zip(layouts, between[1:], strict=True)
        )
        ids = tokens(laid)
        runs = [run for layout in layouts for run in layout.runs]
        if ids.count(self._vision.token_id) != len(runs):
            raise PromptError("The tokeniser of this model does not keep its mark for images whole.", "messages")
        result, places = _spread(ids, self._vision.token_id, runs)
        images = []
        for picture, layout in zip(pictures, layouts, strict=True):
            count = len(layout.runs)
            images.append(PromptImage(picture.data, picture.digest, layout.grid, places[:count]))
            del places[:count]
        return Reading(result, images)

    def _layout(self, picture: Picture, place: str) -> Layout:
        try:
            return self._vision.layout(picture.width, picture.height)
        except TooLopsided as error:
            raise PromptError(f"{place}: the image cannot be taken: {error}.", place) from error


def _spread(ids: list[int], token: int, runs: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids with each token of images as often as its run is long, and where the runs are."""
    result: list[int] = []
    places: list[tuple[int, int]] = []
    start = 0
    for run in runs:
        at = ids.index(token, start)
        result += ids[start:at]
        places.append((len(result), run))
        result += [token] * run
        start = at + 1
    return result + ids[start:], places
