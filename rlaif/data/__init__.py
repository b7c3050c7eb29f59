"""Records from files and back: formats of pairs, prompts, filters, dataset folders."""
