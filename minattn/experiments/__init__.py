"""Experiments with models of their own, one folder each; the model, the trainer and the kit do not need them."""
