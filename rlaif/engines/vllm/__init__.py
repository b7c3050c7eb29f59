"""vLLM in this process's charge, or as a server of our own."""
