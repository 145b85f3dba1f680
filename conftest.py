"""Doctests are collected by importing every module: leave out those whose library is not installed."""

from importlib.util import find_spec

NEEDS = {
    "cupy": ["bnengine/bench/gpu/*", "bnengine/kernels/cuda/*", "tests/host_cuda/[blms]*.py"],
    "numba": ["bnengine/kernels/cpu/*"],
    "resource": ["tests/programs/*.py", "tests/test_crashes.py", "tests/test_fuzz.py"],  # POSIX
    "sklearn": ["bnengine/sklearn/*", "tests/programs/scikit_learn_mlp.py"],
    "torch": ["tests/support/torch_ranks.py"],
}
collect_ignore_glob = [path for module, paths in NEEDS.items() if find_spec(module) is None for path in paths]
