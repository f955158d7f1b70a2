"""Nothing is lost: checkpoints that any other plan takes up."""
