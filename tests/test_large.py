"""Problems too large for the oracle, with less examples than large_problems.py has."""

import pytest
from cases import needs_compiler
from large_problems import PROBLEMS, Large, smaller


@pytest.mark.parametrize("mode", [pytest.param("CVM", marks=needs_compiler), "NUMBA"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_projections_are_exact(name, mode):
    problem = smaller(PROBLEMS[name])
    Large(problem).check_gemv(mode)
    Large(problem).check_outer(mode)
