"""Measurements beside what else one would use, each module a question: `make bench`."""
