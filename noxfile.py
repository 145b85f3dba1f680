#!/usr/bin/env -S python3 -m nox -f
"""What CI runs, by name: `nox` for the suite, lint and documentation, `nox -s docs` for one session."""

# /// script
# dependencies = ["nox"]
# ///

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "venv"
PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """Requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def floors() -> list[str]:
    """What the package and its tests promise to run with, each in its oldest version."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    promised = PYPROJECT["project"]["dependencies"] + extras["train"] + extras["cpu"] + extras["test"]
    return [requirement.replace(">=", "==") for requirement in promised if ">=" in requirement]


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """The suite and the doctests; `nox -s tests -- -k norm` passes arguments on."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def everything(session: nox.Session) -> None:
    """The same with every library and the CUDA sources on the host: what is skipped needs a GPU, or the program chromium."""
    session.install("-e", ".[test]", *group("libraries"), *group("mpi"), *group("cuda-proof"))
    session.run("pytest", "-q", "-n", "2", "--dist", "loadfile", *session.posargs, env={"BNENGINE_TEST_ALL": "1"})


@nox.session(python="3.11", default=False)
def oldest(session: nox.Session) -> None:
    """The suite with the oldest Python and the oldest versions that pyproject.toml promises."""
    # matplotlib's oldest warns of what pyparsing 3.2 and later call deprecated.
    session.install("-e", ".[test]", "pyparsing<3.2", *floors())
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Wheel and sdist in dist/, checked, and the suite run from both: the wheel's with no package beside the tests."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    (wheel,), (sdist,) = (list(Path("dist").resolve().glob(end)) for end in ("*.whl", "*.tar.gz"))
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    place = Path(session.create_tmp()).resolve() / "unpacked"
    for file in (sdist, wheel):
        shutil.rmtree(place, ignore_errors=True)
        shutil.unpack_archive(sdist, place, filter="data")
        (folder,) = place.iterdir()
        session.install("--force-reinstall", "--no-deps", str(file))
        session.install(f"{file}[test]")
        if file is wheel:
            shutil.rmtree(folder / "bnengine")
        with session.chdir(folder):
            session.run("pytest", *(["tests"] if file is wheel else []), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and the directions of imports."""
    session.install("-e", ".", *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, notebooks executed, warnings as errors."""
    session.install("-e", ".[train,cpu]", *group("docs"))
    options = ["--fresh-env", "-W", "--keep-going", "-b", "html"]  # fresh: pages show what the code does now
    session.run("sphinx-build", *options, "docs", "docs/_build", *session.posargs)


@nox.session(default=False)
def host_cuda(session: nox.Session) -> None:
    """The whole grid of the CUDA proof on the host: dtypes, layouts, schedules, architectures, sanitizers."""
    session.install("-e", ".[test]", *group("cuda-proof"))
    session.run("pytest", "tests/host_cuda", "-m", "grid", *session.posargs)


@nox.session(venv_backend="none", default=False)
def gpu(session: nox.Session) -> None:
    """The record of the CUDA path, where a GPU is: `nox -s gpu -- --name h100` (9 minutes, no network, installs nothing)."""
    session.run("python", "benchmarks/gpu_record.py", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """10,000 damaged files for each reader, under limits on memory and time: `nox -s fuzz -- npz --cases 500`."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/fuzz.py", *session.posargs)


@nox.session(default=False)
def crashes(session: nox.Session) -> None:
    """100 kills of `bnengine train --resume`, 20 of them inside a write, and a full disk."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/crashes.py", *session.posargs)


@nox.session(default=False)
def mutate(session: nox.Session) -> None:
    """Faults drawn by seed and put into the code one at a time: what share does the suite see (an hour)."""
    session.install("-e", ".[test]", *group("libraries"))
    session.run("python", "tests/programs/mutate.py", *session.posargs)


@nox.session(default=False)
def processes(session: nox.Session) -> None:
    """Four trainings at once on one empty cache of kernels."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/processes.py", *session.posargs)


@nox.session(default=False)
def long_run(session: nox.Session) -> None:
    """Memory and time over 100,000 steps on every library: `nox -s long_run -- numpy --steps 20000`."""
    session.install("-e", ".[test]", *group("libraries"))
    session.run("python", "tests/programs/long_run.py", *session.posargs)


@nox.session(default=False)
def mpi(session: nox.Session) -> None:
    """Training on 1 to 8 ranks against one process (minutes)."""
    session.install("-e", ".[test]", *group("mpi"))
    session.run("pytest", "tests/test_mpi.py", "-m", "grid", "-s", *session.posargs)


if __name__ == "__main__":
    nox.main()
