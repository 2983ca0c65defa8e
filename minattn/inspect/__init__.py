"""What a trained model attends to: its attention weights, their statistics, rollout, and the leak of a loss."""
