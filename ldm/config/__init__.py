"""Run files: strict YAML into frozen records, with errors that name the line and the nearest right word."""

from ldm.config.explain import explain
from ldm.config.load import Strict, dump, find, load, loads, maker

__all__ = ["Strict", "dump", "explain", "find", "load", "loads", "maker"]
