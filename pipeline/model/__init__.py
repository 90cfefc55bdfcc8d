"""The frozen CLIP, DCMPLN upon it, its folded form, and the checkpoint. Knows nothing of data sets."""
