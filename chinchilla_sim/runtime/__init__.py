"""Do it for real: a program interpreted over torch.distributed, one process per rank."""
