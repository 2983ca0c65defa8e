"""Experiments with models of their own, one folder each. Nothing else needs them."""
