"""One rank's images: opened beside the steps, seen when a step reaches them, remembered."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from worker.engine.plan import Row
from worker.engine.vision.features import FeatureCache, Features
from worker.engine.vision.pixels import PixelMaker, Pixels
from worker.engine.vision.positions import Positions
from worker.engine.vision.tower import Tower
from worker.engine.vision.visual import Glance, Seen, Visual
from worker.models.vision import Vision
from worker.protocol import Submit

_WEIGHT = 0.3  # of the newest measurement


class Sight:
    """What engine, scheduler and model need of images. Steps and everything here but `open`'s work are one thread's."""

    def __init__(
        self,
        vision: Vision,
        tower: Tower,
        pixels: PixelMaker,
        features: FeatureCache,
        *,
        step_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step_tokens`: of images that a step sees for the first time; one image is always allowed."""
        self.vision = vision
        self._tower = tower
        self._pixels = pixels
        self._features = features
        self._step_tokens = step_tokens
        self._clock = clock
        self._token_s = 0.0

    def open(self, job: Submit) -> "Future[list[Pixels]]":
        """Make the job's images ready."""
        return self._pixels.begin(job.images)

    def visual(self, job: Submit, pixels: list[Pixels]) -> Visual:
        """The job's images, once they are ready."""
        positions = None
        if self.vision.turns:
            positions = Positions(len(job.prompt), [(one.runs[0][0], *one.grid) for one in job.images])
        seen = [Seen(image, one) for image, one in zip(job.images, pixels, strict=True)]
        return Visual(seen, positions, self._features)

    def forget(self) -> None:
        """Know no image any more."""
        self._features.clear()

    def glance(self) -> Glance:
        """What the next step may see for the first time."""
        return Glance(self._step_tokens)

    def num_unseen(self, rows: Iterable[Row]) -> int:
        """Tokens of images that these rows see for the first time."""
        unseen: dict[bytes, int] = {}
        for row in rows:
            if row.sequence.visual is not None:
                for one in row.sequence.visual.unknown(row.start, row.stop):
                    unseen[one.image.digest] = one.num_tokens
        return sum(unseen.values())

    def predict_s(self, num_tokens: int) -> float:
        """Seconds that the tower should need for so many tokens."""
        return self._token_s * num_tokens

    def features(self, seen: Seen) -> Features:
        """The embeddings of an image. Runs the tower where they are not known."""
        found = self._features.get(seen.image.digest)
        if found is None:
            started = self._clock()
            pixels = seen.pixels or self._pixels.make(seen.image)
            found = self._tower.encode(pixels, seen.num_tokens)
            self._learn(seen.num_tokens, self._clock() - started)
            self._features.put(seen.image.digest, found)
        seen.pixels = None
        return found

    def _learn(self, num_tokens: int, seconds: float) -> None:
        token_s = seconds / num_tokens
        self._token_s = token_s if not self._token_s else (1 - _WEIGHT) * self._token_s + _WEIGHT * token_s
