"""What the keys of an experiment mean, and how a file becomes a config.

Everything here is validation. Unknown keys are refused with the nearest known one; nothing is read
but the YAML itself. `description` fields never enter a hash.
Import a class from the module that defines it.
"""
