"""What CI runs, by name: `nox` for everything, `nox -s docs` for one session."""

import nox

nox.options.default_venv_backend = "venv"
PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """Requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def tests(session: nox.Session) -> None:
    """The suite and the doctests; `nox -s tests -- -k norm` passes arguments on."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


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


@nox.session
def host_cuda(session: nox.Session) -> None:
    """The whole grid of the CUDA proof on the host: dtypes, layouts, schedules, architectures, sanitizers."""
    session.install("-e", ".[test]", *group("cuda-proof"))
    session.run("pytest", "tests/host_cuda", "-m", "grid", *session.posargs)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The record of the CUDA path, where a GPU is: `nox -s gpu -- --name h100` (20 minutes, no network, installs nothing)."""
    session.run("python", "benchmarks/gpu_record.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """10,000 damaged files for each reader, under limits on memory and time: `nox -s fuzz -- npz --cases 500`."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/fuzz.py", *session.posargs)


@nox.session
def crashes(session: nox.Session) -> None:
    """100 kills of `bnengine train --resume`, 20 of them inside a write, and a full disk."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/crashes.py", *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Faults drawn by seed and put into the code one at a time: what share does the suite see? (an hour)"""
    session.install("-e", ".[test]", *group("libraries"))
    session.run("python", "tests/programs/mutate.py", *session.posargs)


@nox.session
def processes(session: nox.Session) -> None:
    """Four trainings at once on one empty cache of kernels."""
    session.install("-e", ".[test]")
    session.run("python", "tests/programs/processes.py", *session.posargs)


@nox.session
def long_run(session: nox.Session) -> None:
    """Memory and time over 100,000 steps on every library: `nox -s long_run -- numpy --steps 20000`."""
    session.install("-e", ".[test]", *group("libraries"))
    session.run("python", "tests/programs/long_run.py", *session.posargs)


@nox.session
def mpi(session: nox.Session) -> None:
    """Training on 1 to 8 ranks against one process (minutes)."""
    session.install("-e", ".[test]", *group("mpi"))
    session.run("pytest", "tests/test_mpi.py", "-m", "grid", "-s", *session.posargs)
