"""What every room needs and no room owns.

Records and their ids, errors, the run folder's store and its row files, YAML with line numbers,
chat rendering, worker processes, progress, numbers. Nothing here knows of experiments, judges or
models, and nothing loads a tensor library.
A helper belongs here only when two rooms need it.
"""
