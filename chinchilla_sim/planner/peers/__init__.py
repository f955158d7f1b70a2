"""Planning problems of PipeDream, Piper and dnn-partitioning, in their own cost models."""
