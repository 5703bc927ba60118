"""Personalisation behind the server's API: trainings in processes of their own, one at a time, kept as files."""
