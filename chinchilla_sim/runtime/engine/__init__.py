"""What can play a plan: our interpreter, or torch's own pipelining."""
