"""Moves rows. Knows Source and Target; not runs, HTTP or the store."""
