"""Models computed in this process, by transformers."""
