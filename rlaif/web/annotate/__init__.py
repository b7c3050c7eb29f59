"""The page on which people give feedback: `rlaif annotate`."""
