"""What a trained model attends to: weights, statistics, rollout, and the leak of a loss."""
