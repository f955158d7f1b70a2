"""Short trainings that measure what compression costs in accuracy."""
