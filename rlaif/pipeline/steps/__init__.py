"""The steps of an experiment: each reads records, asks the layers below, and commits records."""
