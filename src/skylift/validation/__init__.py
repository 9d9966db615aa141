"""Validation suites: what a migrated target is asked besides whether its rows hash as the source's do. docs/validation.md is the reference.

The suites that come with skylift (suites.py) compare every table in ways of their own (census.py, keys.py); suites of one's own
(expectations.py) are SQL. Source: behaviour.md §7.
"""
