"""Receives pushes: verifies them, stores them, and only then responds. Imports nothing of `delivery`."""
