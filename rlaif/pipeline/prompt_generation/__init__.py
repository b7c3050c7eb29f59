"""Prompts that models write, and the mixing of prompts from several sources."""
