"""Tools for anyone who wants to know whether an implementation is right, forward and backward."""
from minattn.validate.check import check

__all__ = ["check"]
