"""Scoring: the SDR metrics, the evaluation of whole songs, and the published numbers."""
