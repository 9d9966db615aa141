"""Upgrade packs: what they are (pack.py), and how one company goes through them (execute.py)."""
