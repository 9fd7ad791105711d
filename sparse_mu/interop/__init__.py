"""PyTorch state dicts in and out: conversion of names and layouts, and files of them."""

from sparse_mu.interop.conversion import from_state_dict, to_state_dict
from sparse_mu.interop.errors import StateDictError
from sparse_mu.interop.files import read_state_dict, write_state_dict

__all__ = [
    "StateDictError",
    "from_state_dict",
    "read_state_dict",
    "to_state_dict",
    "write_state_dict",
]
