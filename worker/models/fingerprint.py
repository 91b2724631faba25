"""Whether two replicas compute alike: equal fingerprints promise equal tokens in float32, and near ones below."""

import hashlib
import json
from pathlib import Path

from worker.models.files import CONFIG, read_json
from worker.models.weights import digest

_NO_MATTER = ("transformers_version", "_name_or_path")


def fingerprint(path: Path, *, backend: str, dtype: str, device_kind: str, version: str, weights: bool = True) -> str:
    """Twelve characters from configuration, weights, dtype, back end, its version (1.2.3 counts as 1.2) and device.

    Of the weights it sees the headers and samples; `weights` is false for a back end that does not read them.
    """
    config = {key: value for key, value in read_json(path / CONFIG).items() if key not in _NO_MATTER}
    minor = ".".join(version.split(".")[:2])
    parts = [json.dumps(config, sort_keys=True), digest(path) if weights else "", backend, dtype, device_kind, minor]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
