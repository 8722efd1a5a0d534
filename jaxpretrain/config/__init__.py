"""Typed configs: loading, overriding, checking, saving and describing them.

A config is a tree of frozen dataclasses. This package knows no config in particular, but for the
tables of old and foreign names (`renames`, `aliases`), and imports nothing else of the project.
"""
