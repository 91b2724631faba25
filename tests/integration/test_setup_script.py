"""./plexus, the set-up script, with an interpreter whose venv and pip only take notes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs as $PYTHON and as .venv/bin/python. `pip` writes its arguments to pip.log, waits while there is a pip.wait, and
# fails when its arguments hold a word of pip.fail. torch.there is the version of the torch that is installed.
FAKE_PYTHON = """#!/bin/sh
here=TREE
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!/bin/sh\\necho "ran plexus $*"\\n' >"$3/bin/plexus"
    chmod +x "$3/bin/plexus"
    ;;
"-m pip")
    shift 2
    case $* in --version) exit ;; esac
    echo "$*" >>"$here/pip.log"
    while [ -e "$here/pip.wait" ]; do sleep 0.02; done
    for word in $(cat "$here/pip.fail" 2>/dev/null); do
        case $* in *"$word"*) echo "pip cannot: $word" >&2; exit 1 ;; esac
    done
    ;;
"-m pytest") shift 2; echo "ran pytest $*" ;;
*)
    case $2 in
    *version*torch*) cat "$here/torch.there" 2>/dev/null || exit 1 ;;
    *pip.__version__*) exit 0 ;;
    *) exec REAL "$@" ;;
    esac
    ;;
esac
"""


class Tree:
    """A checkout with a fake interpreter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("plexus", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, path / name)
        tools = path / "tools"
        tools.mkdir()
        self.python = tools / "python"
        self.python.write_text(FAKE_PYTHON.replace("TREE", str(path)).replace("REAL", sys.executable))
        self.python.chmod(0o755)
        self.env = {"PATH": f"{tools}:/usr/bin:/bin", "PYTHON": str(self.python), "HOME": str(path)}

    def tool(self, name: str, script: str) -> None:
        """A command on the PATH."""
        (self.path / "tools" / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.path / "tools" / name).chmod(0o755)

    def start(self, *argv: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.path / "plexus"), *argv],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *argv: str, **env: str) -> tuple[int, str, str]:
        """(status, stdout, stderr)."""
        process = self.start(*argv, **env)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def pip(self) -> list[str]:
        """The pip calls since the last question."""
        log = self.path / "pip.log"
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [
            call.replace(f"--disable-pip-version-check install -c {self.path}/constraints.txt ", "") for call in calls
        ]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_first_call_sets_up_and_hands_over_and_the_second_only_hands_over(tree: Tree) -> None:
    status, out, err = tree.run("status", "--json")
    assert (status, out) == (0, "ran plexus status --json\n")
    assert "torch: the cpu build" in err
    assert "no NVIDIA GPU found" in err
    torch, plexus = tree.pip()
    assert torch == "torch==2.13.0+cpu"
    assert plexus == f"-e {tree.path}[worker]"
    assert tree.run("status") == (0, "ran plexus status\n", "")
    assert tree.pip() == []


def test_everything_said_while_setting_up_goes_to_stderr(tree: Tree) -> None:
    assert tree.run("setup")[1] == ""


def test_the_script_is_found_through_a_link(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree.run("setup")
    link = tmp_path_factory.mktemp("bin") / "plexus"
    link.symlink_to(tree.path / "plexus")
    done = subprocess.run([str(link), "up"], env=tree.env, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "ran plexus up\n"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "plexus"])
def test_a_changed_file_brings_the_environment_up_to_date(tree: Tree, name: str) -> None:
    tree.run("setup", "--torch", "none")
    tree.pip()
    with (tree.path / name).open("a") as file:
        file.write("\n# changed\n")
    assert "torch: none, as before" in tree.run("up")[2]
    assert tree.pip() == [f"-e {tree.path}"]


def test_tests_bring_the_dev_group_and_keep_it(tree: Tree) -> None:
    status, out, _ = tree.run("test", "-k", "x", PLEXUS_TORCH="none")
    assert (status, out) == (0, "ran pytest -k x\n")
    assert tree.pip() == [f"-e {tree.path} --group {tree.path}/pyproject.toml:dev"]
    assert tree.run("test")[2] == ""
    with (tree.path / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    tree.run("up")
    assert "--group" in tree.pip()[0]


@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'GPU 0: NVIDIA H200 (UUID: x)'", "cuda"), ("echo 'No devices found'; exit 6", "cpu"), ("exit 9", "cpu")],
)
def test_the_build_of_torch_follows_the_gpu(tree: Tree, script: str, expected: str) -> None:
    tree.tool("nvidia-smi", script)
    _, _, err = tree.run("setup")
    assert f"torch: the {expected} build" in err
    assert tree.pip()[0] == {"cuda": "torch==2.13.0,!=2.13.0+cpu", "cpu": "torch==2.13.0+cpu"}[expected]


def test_an_explicit_choice_goes_before_what_was_found_and_before_the_environment(tree: Tree) -> None:
    tree.tool("nvidia-smi", "echo 'GPU 0: x'")
    tree.run("setup", PLEXUS_TORCH="none")
    assert tree.pip() == [f"-e {tree.path}"]
    tree.run("setup", "--torch=cpu", PLEXUS_TORCH="none")
    assert tree.pip()[0] == "torch==2.13.0+cpu"
    assert tree.run("setup", "--torch", "rocm")[0] == 1
    assert tree.run("setup", "--torch") == (1, "", "plexus: setup: --torch wants a value: auto, cpu, cuda or none\n")


def test_without_a_configured_cpu_build_the_index_of_pytorch_is_asked_once(tree: Tree) -> None:
    (tree.path / "pip.fail").write_text("torch==2.13.0+cpu")
    status, _, err = tree.run("setup", "--torch", "cpu")
    assert status == 0
    assert "pip cannot" not in err  # the first attempt may fail in silence
    _, second, _ = tree.pip()
    assert "--retries 0 --no-deps --index-url https://" in second
    assert second.endswith("/cpu torch==2.13.0")


def test_a_torch_that_is_there_is_kept_unless_it_is_the_wrong_build(tree: Tree) -> None:
    (tree.path / "torch.there").write_text("2.13.0+rocm6.4\n")
    tree.run("setup", "--torch", "cuda")
    assert tree.pip() == [f"-e {tree.path}[worker]"]
    (tree.path / "torch.there").write_text("2.13.0+cpu\n")
    tree.run("setup", "--torch", "cpu")
    assert tree.pip() == [f"-e {tree.path}[worker]"]
    tree.run("setup", "--torch", "cuda")
    assert tree.pip()[0].startswith("torch==")


def test_a_failure_shows_pips_words_and_the_choices_and_is_tried_again(tree: Tree) -> None:
    (tree.path / "pip.fail").write_text("torch==")
    status, _, err = tree.run("up")
    assert status == 1
    assert "pip cannot: torch==" in err
    assert "--torch none" in err
    assert not (tree.path / ".venv" / ".plexus-setup").exists()
    tree.pip()
    (tree.path / "pip.fail").unlink()
    assert tree.run("up")[:2] == (0, "ran plexus up\n")
    assert len(tree.pip()) == 2


@pytest.fixture
def waiting(tree: Tree) -> Iterator[subprocess.Popen[str]]:
    """A set-up that is in the middle of pip."""
    (tree.path / "pip.wait").touch()
    process = tree.start("setup", "--torch", "none")
    wait_until((tree.path / "pip.log").exists)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_an_interrupted_set_up_is_made_anew(tree: Tree, waiting: subprocess.Popen[str]) -> None:
    os.killpg(waiting.pid, signal.SIGKILL)
    waiting.wait()
    half = tree.path / ".venv" / "half-a-package"
    half.touch()
    (tree.path / "pip.wait").unlink()
    status, out, err = tree.run("up")
    assert (status, out) == (0, "ran plexus up\n")
    assert "anew" in err
    assert not half.exists()


def test_two_set_ups_at_once_take_turns(tree: Tree, waiting: subprocess.Popen[str]) -> None:
    tree.pip()
    second = tree.start("up")
    assert second.stderr is not None
    assert "another set-up is running" in second.stderr.readline()
    (tree.path / "pip.wait").unlink()
    assert waiting.wait(10) == 0
    out, err = second.communicate(timeout=10)
    assert (second.returncode, out, err) == (0, "ran plexus up\n", "")
    assert tree.pip() == []  # it found the work done


def test_an_environment_that_was_moved_is_made_anew(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    tree.run("setup", "--torch", "none")
    moved = tmp_path_factory.mktemp("moved") / "tree"
    shutil.copytree(tree.path, moved, symlinks=True)
    done = subprocess.run(
        [str(moved / "plexus"), "up"], env=tree.env, capture_output=True, text=True, timeout=30, check=True
    )
    assert "anew" in done.stderr


def test_a_python_that_is_too_old_or_lacks_venv_is_refused_with_the_remedy(tree: Tree) -> None:
    tree.tool("python3", "exit 1")
    status, _, err = tree.run("up", PYTHON="", PATH=f"{tree.path}/tools")
    assert status != 0
    for name in ("python3.11", "python3.12", "python3.13"):
        tree.tool(name, "exit 1")
    status, _, err = tree.run("up", PYTHON="")
    assert status == 1
    assert "apt-get install python3 python3-venv" in err
    tree.tool("python3.12", "case $2 in *version_info*) exit 0 ;; *) exit 1 ;; esac")
    status, _, err = tree.run("up", PYTHON="")
    assert "apt-get install python3.12-venv" in err
    status, _, err = tree.run("up", PYTHON="/no/such/python")
    assert (status, "3.11" in err) == (1, True)
