"""What an installation without a checkout holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # fetches the build back end
def test_the_wheel_holds_the_packages_their_data_and_the_annotated_settings(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(argv, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    site = tmp_path / "site"
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"gateway", "worker", "shared"}
    assert (site / "worker" / "demo" / "model" / "model.safetensors").exists()
    program = "from shared.files import example; print(example('worker.toml'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(site / "shared" / "_config" / "worker.toml")
