"""What is installed: a wheel and an sdist with one package, all of it, and nothing of the tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
NOT_INSTALLED = {"tests", "bench", "examples", "docs"}


def installed_files():
    """Files of the package as the repository has them: code and data, without what tools leave behind."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("no git checkout: the files of the repository cannot be told from others")
    paths = [Path(line) for line in listed.stdout.splitlines()]
    wanted = [
        p for p in paths if p.parts[0] not in NOT_INSTALLED and p.suffix in (".py", ".json", ".css", ".typed")
    ]
    return {path for path in [*wanted, Path("py.typed")] if not path.parts[0].startswith(".")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that holds both, built from a copy of the tree by setuptools itself."""
    copy = tmp_path_factory.mktemp("source") / "repository"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "demo-output")
    shutil.copytree(ROOT, copy, ignore=ignored)
    out = tmp_path_factory.mktemp("built")
    build = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    done = subprocess.run([sys.executable, "-c", build, out], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_the_wheel_has_one_name_and_all_of_the_package(built):
    (wheel,) = built.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    tops = {name.parts[0] for name in names}
    assert len(tops) == 2
    assert {top for top in tops if not top.endswith(".dist-info")} == {"quantmill"}
    assert {
        name.relative_to("quantmill") for name in names if name.parts[0] == "quantmill"
    } == installed_files()


def test_the_sdist_has_one_name_and_no_tests(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [Path(name) for name in archive.getnames()]
    assert len({name.parts[0] for name in names}) == 1
    inside = {Path(*name.parts[1:]) for name in names if len(name.parts) > 1}
    assert not {name.parts[0] for name in inside} & NOT_INSTALLED
    assert installed_files() <= inside
    assert {Path("pyproject.toml"), Path("LICENSE"), Path("README.md")} <= inside


def test_the_wheel_works_on_its_own(built, tmp_path):
    """Unpacked beside nothing else of the repository."""
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import quantmill.cli, sys; print(quantmill.__file__); sys.exit(quantmill.cli.main(['types']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "Q4_K_M" in done.stdout


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def test_triton_is_asked_for_where_there_is_one_and_in_no_version_of_its_own():
    """Its wheels are for Linux, and each torch for CUDA asks for one of them: a pin beside torch's installs nowhere."""
    asked = {name: [r for r in map(Requirement, rows) if r.name == "triton"] for name, rows in EXTRAS.items()}
    assert {name for name, found in asked.items() if found} == {"gpu", "test"}
    for (triton,) in filter(None, asked.values()):
        assert {one.operator for one in triton.specifier} == {">="}
        assert triton.marker is not None
        there = [s for s in ("linux", "darwin", "win32") if triton.marker.evaluate({"sys_platform": s})]
        assert there == ["linux"]
