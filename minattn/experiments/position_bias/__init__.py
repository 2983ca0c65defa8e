"""Position bias (arXiv 2502.01951): bounds, random stacks, and networks trained on recall."""
