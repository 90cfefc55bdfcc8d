"""From prepared images to a trained model: crops, the step, the loop, and the baselines."""
