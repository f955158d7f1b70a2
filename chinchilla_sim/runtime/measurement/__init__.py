"""What this machine can do: kernels, messages, tasks of a model, emulated links."""
