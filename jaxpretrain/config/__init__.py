"""Typed configs: loading, overriding, checking, saving and describing them.

A config is a tree of frozen dataclasses. This package knows no config in particular and imports
nothing else of the project.
"""
