"""Kernels: they know arrays, not graphs."""
