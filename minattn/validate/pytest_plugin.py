"""The cases as tests of your own test suite, one test per case:

    # test_kernel.py
    from minattn.validate.pytest_plugin import suite
    from kernels import my_attention

    TestMyAttention = suite("softmax", my_attention, framework="torch")

A case that your function does not cover is skipped, with the reason. Select as with any test:
pytest -k window.
"""
import pytest

from minattn.validate.check import begin, verdict
from minattn.validate.report import DIFFERS, FAILED, NOT_COVERED, SKIPPED, XFAILED


def suite(mechanism, fn, **how):
    """A class of tests, to be bound to a name that starts with Test.

    Arguments as for minattn.validate.check (but show and progress). A wrong one is an InputError
    while pytest collects.
    """
    setup, chosen, rules = begin(mechanism, fn, **how)

    class Suite:
        @pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])
        def test_case(self, case):
            result = verdict(case, setup, rules)
            if result.status == FAILED:
                pytest.fail(result.told(), pytrace=False)
            if result.status == XFAILED:
                pytest.xfail(result.reason)
            if result.status == DIFFERS:
                pytest.xfail(f"{DIFFERS}: {result.reason}")
            if result.status in (NOT_COVERED, SKIPPED):
                pytest.skip(result.reason)

    if setup.no_gradients:                                   # said once, and never "passed"
        reason = f"gradients not covered: {setup.no_gradients}"
        Suite.test_gradients = lambda self: pytest.skip(reason)
    Suite.__doc__ = f"{setup.target.name} against the cases of {mechanism} attention."
    return Suite
