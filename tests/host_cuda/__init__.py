"""The CUDA kernels on the host: the source that CuPy would compile, compiled by g++ and run thread by thread."""
