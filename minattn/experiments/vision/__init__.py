"""Softmax beside the Gaussian kernel on pictures: tiny vision transformers on noisy shapes."""
