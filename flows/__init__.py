"""Prefect flows: which nodes run, when, with what retries and limits."""
