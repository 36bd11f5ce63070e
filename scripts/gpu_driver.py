"""NVIDIA's driver through ctypes: modules of PTX, kernels, launches. No toolkit is needed.

Works in the context that PyTorch made current, and on PyTorch's current stream.
"""
import ctypes
import re
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p

LOG_BYTES = 16 << 10
ERROR_LOG, ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER, .._SIZE_BYTES
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PLAIN_SHARED = 48 << 10
# Exit status of a worker whose context is lost.
LOST = 3
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
# CU_TENSOR_MAP_DATA_TYPE_FLOAT16, .._BFLOAT16, .._FLOAT32, .._UINT8, and their bytes.
MAP_TYPES = {"f16": (6, 2), "bf16": (9, 2), "f32": (7, 4), "i8": (0, 1), "u8": (0, 1),
             "f8e4m3fn": (0, 1), "f8e5m2": (0, 1)}
MAP_SWIZZLE_128 = 3  # CU_TENSOR_MAP_SWIZZLE_128B
MAP_PROMOTE_256 = 3  # CU_TENSOR_MAP_L2_PROMOTION_L2_256B


class DriverError(Exception):
    """A call of the driver that failed."""


class Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, then 64 bytes at a multiple of 8."""

    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_uint * 16)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
                ("attributes", ctypes.POINTER(Attribute)), ("count", c_uint)]


class Driver:
    """The driver of this process."""

    def __init__(self, library="libcuda.so.1"):
        self.library = ctypes.CDLL(library)

    def call(self, name, *args):
        code = getattr(self.library, name)(*args)
        if code:
            text, said = c_char_p(), c_char_p()
            self.library.cuGetErrorName(code, byref(text))
            self.library.cuGetErrorString(code, byref(said))
            name_of, words = ((t.value or b"?").decode() for t in (text, said))
            raise DriverError(f"{name}: {name_of} ({code}): {words}")

    def version(self):
        """The CUDA version that the driver serves, as 12040 for 12.4."""
        value = c_int()
        self.call("cuDriverGetVersion", byref(value))
        return value.value

    def load(self, ptx):
        """A module of PTX text; the assembler's log where it is refused."""
        module, log = c_void_p(), ctypes.create_string_buffer(LOG_BYTES)
        options = (c_int * 2)(ERROR_LOG, ERROR_LOG_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        try:
            self.call("cuModuleLoadDataEx", byref(module), c_char_p(ptx.encode()), c_uint(2), options, values)
        except DriverError as e:
            raise DriverError(f"{e}\n{log.value.decode(errors='replace').strip()}") from None
        return module

    def kernel(self, module, name, shared=0):
        """A module's kernel, whose launches ask for so much dynamic shared memory."""
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), module, c_char_p(name.encode()))
        if shared > PLAIN_SHARED:
            self.call("cuFuncSetAttribute", function, c_int(MAX_DYNAMIC_SHARED), c_int(shared))
        return function

    def tensor_map(self, tile, address):
        """A tensor map of a buffer that a kernel reads by tiles, 128 bytes of a row swizzled."""
        rank, memory = len(tile["sizes"]), ctypes.create_string_buffer(128 + 64)
        at = -ctypes.addressof(memory) % 64
        place = (ctypes.c_char * 128).from_buffer(memory, at)
        number, size = MAP_TYPES[tile["dtype"]]
        sizes = (ctypes.c_uint64 * rank)(*tile["sizes"])
        strides = (ctypes.c_uint64 * (rank - 1))(*(size * n for n in tile["strides"]))
        extent, steps = (c_uint * rank)(*tile["tile"]), (c_uint * rank)(*[1] * rank)
        self.call("cuTensorMapEncodeTiled", byref(place), c_int(number), c_uint(rank), c_void_p(address),
                  sizes, strides, extent, steps, c_int(0), c_int(MAP_SWIZZLE_128), c_int(MAP_PROMOTE_256), c_int(0))
        return place

    def prepared(self, functions, how, words, stream):
        """A call without arguments that launches a kernel's passes; `words` are its parameters, the buffers' addresses first."""
        held = [ctypes.c_uint64(w % 2**64) for w in words]
        held += [self.tensor_map(tile, words[tile["buffer"]]) for tile in how["tiles"]]
        params = (c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        passes = [self.one(function, one, params, stream) for function, one in zip(functions, how["passes"])]

        def launch(held=held):  # The parameters live as long as the call.
            for one in passes:
                one()

        return launch

    def one(self, function, how, params, stream):
        """A call that launches one pass."""
        cluster = Attribute(CLUSTER_DIMENSION, 0, (c_uint * 16)(*how["cluster"]))
        config = Config((c_uint * 3)(*how["grid"]), (c_uint * 3)(*how["block"]), how["shared"], stream,
                        ctypes.pointer(cluster), int(how["cluster"] != [1, 1, 1]))
        sizes = [c_uint(n) for n in (*how["grid"], *how["block"], how["shared"])]

        def launch():
            if config.count:
                self.call("cuLaunchKernelEx", byref(config), function, params, None)
            else:
                self.call("cuLaunchKernel", function, *sizes, c_void_p(stream), params, None)

        return launch


def split(ptx):
    """The text before the first entry, and each entry's text by name."""
    parts = re.split(r"(?m)^(?=\.visible \.entry )", ptx)
    names = [re.match(r"\.visible \.entry (\w+)", part)[1] for part in parts[1:]]
    return parts[0], dict(zip(names, parts[1:]))
