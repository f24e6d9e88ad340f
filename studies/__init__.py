"""Experiments that answer a question, each with a page in docs/ and a command."""
