"""Models behind HTTP: the OpenAI wire format, retries, pace, cache and money."""
