"""Training: batches, masters, checkpoints, and the methods as tasks of one loop."""
