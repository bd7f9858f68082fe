"""The C++ kernels, kept as header files; `source` hands them to the ops' C code."""
