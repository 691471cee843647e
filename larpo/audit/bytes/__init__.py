"""Every byte against dvc.lock."""
