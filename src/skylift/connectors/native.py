"""What compiled loops need to speak with a driver's C library: calls by address, and the memory that it hands out.

Addresses are arguments of the loops, not constants in them, so that Numba can keep the machine code from one process to the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def addresses(library: ctypes.CDLL, names: Iterable[str]) -> np.ndarray:
    """Where the functions of these names are, in `library` or what it is linked with."""
    return np.array([ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names], np.uint64)


@intrinsic
def call(typing, function, argument):
    """function(argument) of a C function of one pointer that returns one, all as integers."""
    def codegen(context, builder, signature, arguments):
        word = ir.IntType(64)
        return builder.call(builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer()), [arguments[1]])
    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def call3(typing, function, first, second, third):
    """function(first, second, third) of a C function of two pointers and an int that returns an int."""
    def codegen(context, builder, signature, arguments):
        word, number = ir.IntType(64), ir.IntType(32)
        return builder.call(builder.inttoptr(arguments[0], ir.FunctionType(number, [word, word, number]).as_pointer()), arguments[1:])
    return types.int32(types.uint64, types.uint64, types.uint64, types.int32), codegen


@intrinsic
def at(typing, address):
    """The pointer that an integer is."""
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)
    return types.voidptr(types.uint64), codegen


@intrinsic
def copy(typing, to, origin, size):
    """memcpy: `size` bytes from the address `origin` to the address `to`."""
    def codegen(context, builder, signature, arguments):
        pointers = [builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2]]
        cgutils.raw_memcpy(builder, *pointers, arguments[2], 1)       # type: ignore[call-arg]
        return context.get_dummy_value()
    return types.void(types.uint64, types.uint64, types.uint64), codegen
