"""Runs that lie in an object store: their working copies on this machine, what is brought and what is sent.

Imports datasets_manifest alone.
"""
