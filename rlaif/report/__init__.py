"""What a person reads: the page of a run, of a benchmark, and tables for a terminal."""
