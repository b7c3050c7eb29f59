"""Training methods and kinds of reward models: their keys, what they need, and their losses."""
