"""The sample project: the same commits everywhere, and every one of them can be run."""

import hashlib
import json
import os
import subprocess
import tomllib
from importlib import resources
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from uv import find_uv_bin

from notebooks_service.platform.sample import build_sample

HEAD = "a97e03a2fa2d6972fed37514eb8eb9c217793f71"
BRANCHES = {"main": 10, "five-year-window": 8, "permutation-test": 11}
COMMITS = 12


def git(repository: Path, *arguments: str) -> str:
    # A machine may have git-lfs set up for everybody; what is tested here needs none.
    environment = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    command = ["git", "-C", str(repository), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sample(tmp_path_factory.mktemp("sample"))


def commits(repository: Path) -> list[str]:
    return git(repository, "rev-list", "--all", "--reverse", "--topo-order").split()


def files(repository: Path, sha: str) -> list[str]:
    return git(repository, "ls-tree", "-r", "--name-only", "-z", sha).rstrip("\0").split("\0")


def test_the_commits_are_the_same_everywhere(sample: Path) -> None:
    assert sample.name == "nile"
    assert git(sample, "rev-parse", "HEAD") == HEAD
    assert git(sample, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert len(commits(sample)) == COMMITS
    counts = {name: int(git(sample, "rev-list", "--count", name)) for name in BRANCHES}
    assert counts == BRANCHES
    assert git(sample, "tag") == "v1.0"
    git(sample, "fsck", "--strict")


def test_a_persons_git_configuration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "gitconfig"
    configuration.write_text(
        "[init]\n\tdefaultBranch = other\n[core]\n\tautocrlf = true\n"
        "[commit]\n\tgpgSign = true\n[user]\n\tname = Somebody\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    repository = build_sample(tmp_path / "sample")
    assert git(repository, "rev-parse", "main") == HEAD


def test_building_it_again_changes_nothing(tmp_path: Path) -> None:
    before = git(build_sample(tmp_path), "show-ref")
    assert git(build_sample(tmp_path), "show-ref") == before


def test_requirements_change_twice_after_their_creation(sample: Path) -> None:
    history = git(sample, "log", "--format=%s", "--reverse", "main", "--", "requirements.txt")
    assert history.splitlines() == [
        "Start with the flow of the Nile at Aswan, 1871 to 1920",
        "Use pandas for the series",
        "Print the comparison as a table",
    ]


def test_code_data_and_notebooks_change_too(sample: Path) -> None:
    for name, changes in {"flows.py": 6, "data/nile.csv": 3, "01-look.ipynb": 5}.items():
        assert int(git(sample, "rev-list", "--count", "main", "--", name)) == changes, name


def test_every_file_that_is_shipped_is_used() -> None:
    root = resources.files("notebooks_service.platform") / "sample"
    history = tomllib.loads((root / "history.toml").read_text(encoding="utf-8"))
    named = {
        f"{step['directory']}/{'dot-' + name[1:] if name.startswith('.') else name}"
        for step in history["commits"]
        for name in step["put"]
    }
    with resources.as_file(root) as directory:
        shipped = {
            str(path.relative_to(directory))
            for path in directory.glob("*/**/*")
            if path.is_file() and "__pycache__" not in path.parts
        }
    assert shipped == named


def test_notebooks_are_valid_and_hold_no_outputs(sample: Path) -> None:
    seen = 0
    for sha in commits(sample):
        for name in files(sample, sha):
            if not name.endswith(".ipynb"):
                continue
            notebook = nbformat.reads(git(sample, "show", f"{sha}:{name}"), as_version=4)
            nbformat.validate(notebook)
            assert not [cell for cell in notebook.cells if cell.get("outputs")], (sha, name)
            seen += 1
    assert seen == 19  # 12 commits with the first notebook, 7 of them with the second


def test_every_branch_can_be_checked_out_clean(sample: Path, tmp_path: Path) -> None:
    for branch in BRANCHES:
        git(tmp_path, "clone", "--quiet", "--branch", branch, str(sample), branch)
        assert git(tmp_path / branch, "status", "--porcelain", "--ignored") == ""
        assert (tmp_path / branch / ".gitignore").is_file()


@pytest.mark.stack
def test_every_notebook_runs_in_its_commits_environment(sample: Path, tmp_path: Path) -> None:
    pythons: dict[str, Path] = {}
    ran: set[str] = set()
    for sha in commits(sample):
        requirements = git(sample, "show", f"{sha}:requirements.txt")
        if requirements not in pythons:
            pythons[requirements] = make_environment(tmp_path, len(pythons), requirements)
        work = tmp_path / sha
        git(tmp_path, "clone", "--quiet", str(sample), str(work))
        git(work, "checkout", "--quiet", sha)
        put_large_files(sample, work)
        beside = [
            (path.name, path.read_bytes())
            for path in sorted((*work.glob("*.py"), *work.glob("data/*")))
        ]
        for path in sorted(work.glob("*.ipynb")):
            # Where only words have changed, it is the same notebook: once is enough.
            what = repr((requirements, beside, path.read_bytes()))
            if what not in ran:
                run_notebook(path, pythons[requirements])
                ran.add(what)
        assert git(work, "status", "--porcelain") == ""
    assert (len(pythons), len(ran)) == (3, 15)


def put_large_files(sample: Path, work: Path) -> None:
    """What a server does at its launch: the data instead of what points at it."""
    for name in ("data/nile.csv",):
        pointed = (work / name).read_text().splitlines()
        assert pointed[0] == "version https://git-lfs.github.com/spec/v1"
        oid = pointed[1].removeprefix("oid sha256:")
        content = (sample / "lfs" / "objects" / oid[:2] / oid[2:4] / oid).read_bytes()
        assert hashlib.sha256(content).hexdigest() == oid
        assert pointed[2] == f"size {len(content)}"
        (work / name).write_bytes(content)
        git(work, "update-index", "--assume-unchanged", name)


def make_environment(directory: Path, number: int, requirements: str) -> Path:
    """A new environment with ``requirements`` and a kernel; returns its interpreter."""
    environment = directory / f"environment-{number}"
    listed = directory / f"requirements-{number}.txt"
    listed.write_text(requirements)
    python = environment / "bin" / "python"
    subprocess.run([find_uv_bin(), "venv", "--quiet", str(environment)], check=True)
    subprocess.run(
        [
            find_uv_bin(),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(python),
            "-r",
            str(listed),
            "ipykernel",
        ],
        check=True,
    )
    return python


def run_notebook(path: Path, python: Path) -> None:
    """Runs ``path`` by ``python``: its plots are drawn, nothing is warned of."""
    kernels = python.parents[1] / "kernels"
    (kernels / "sample").mkdir(parents=True, exist_ok=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": argv, "display_name": "Sample", "language": "python"}
    (kernels / "sample" / "kernel.json").write_text(json.dumps(specification))
    specifications = KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False)
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        km=AsyncKernelManager(kernel_name="sample", kernel_spec_manager=specifications),
        timeout=120,
        resources={"metadata": {"path": path.parent}},
    )
    client.execute(cleanup_kc=True)  # ends the kernel, which we brought
    outputs = [output for cell in client.nb.cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if "image/png" in output.get("data", {})], path
    assert not [output for output in outputs if output.get("name") == "stderr"], outputs
    if path.name == "02-change.ipynb" and b"change_year" in (path.parent / "flows.py").read_bytes():
        said = "".join(output.get("text", "") for output in outputs)
        assert "after 1898" in said
