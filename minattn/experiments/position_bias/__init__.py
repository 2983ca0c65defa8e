"""Position bias (arXiv 2502.01951): bounds, random stacks of attention, and small networks trained on in-context recall."""
