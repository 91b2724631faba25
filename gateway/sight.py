"""Images and models that cannot see: refused here when the fleet knows it, else by the replica, in the same words.

Replicas name an image by its place in the neutral prompt; a client knows the place in its own body.
"""

import copy

from gateway.catalogue import Catalogue
from gateway.dialects.conversation import image_paths
from gateway.errors import ApiError, InvalidRequest
from gateway.request import InferenceRequest
from shared.messages import no_sight
from shared.records import ModelRecord


def check(request: InferenceRequest, model: ModelRecord, catalogue: Catalogue) -> None:
    """Raises InvalidRequest for images that go to a model of which it is known that it takes none."""
    if request.images and catalogue.info(model.id).capabilities.get("vision") is False:
        place = request.images[0]
        raise InvalidRequest(no_sight(model.id, place), param=place)


def placed(error: ApiError, request: InferenceRequest | None) -> ApiError:
    """`error`, and if it is about an image, with the place that the client knows."""
    if request is None or not request.images or not error.param:
        return error
    for path, place in zip(image_paths(request.prompt), request.images, strict=True):
        if error.param == path or error.param.startswith(f"{path}."):
            found = copy.copy(error)
            found.param, found.message = place, error.message.replace(path, place)
            return found
    return error
