"""Was it right? Simulated against measured."""
