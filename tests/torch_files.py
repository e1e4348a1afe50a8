"""Files of PyTorch written by hand, opcode by opcode, as PyTorch itself does not write what must be refused."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from jax_mmreid.errors import DataError
from jax_mmreid.weights import torch_archive

NUMBERS = np.arange(6, dtype=np.float32)
STORED = struct.pack("<q", 6) + NUMBERS.tobytes()


class Attack:
    """Unpickled by the book, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def push(x):
    """The opcodes that push a plain value on the stack."""
    return pickle.dumps(x, protocol=2)[2:-1]


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def tensor(shape=(2, 3), strides=(3, 1), offset=0, *, key="0", size=6, kind="FloatStorage"):
    """The opcodes of a tensor."""
    storage = b"(" + push("storage") + name("torch", kind) + push(key) + push("cpu") + push(size) + b"tQ"
    arguments = storage + push(offset) + push(shape) + push(strides) + push(False)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + name("collections", "OrderedDict") + b")RtR"


def state_dict(**tensors):
    """The pickle of a dict of tensors."""
    return b"\x80\x02}(" + b"".join(push(key) + x for key, x in tensors.items()) + b"u."


def zip_file(path, pickled, compress=(), **storages):
    """A zip file of torch.save with these storages, by default `NUMBERS` alone."""
    with zipfile.ZipFile(path, "w") as file:
        members = {"data.pkl": pickled, "byteorder": b"little"}
        for key, x in (storages or {"0": NUMBERS}).items():
            members[f"data/{key}"] = x.tobytes()
        for member, content in members.items():
            kind = zipfile.ZIP_DEFLATED if member in compress else zipfile.ZIP_STORED
            file.writestr(f"model/{member}", content, compress_type=kind)
    return str(path)


def refused(path, match):
    with pytest.raises(DataError, match=match) as caught:
        torch_archive.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def module(*attributes, memo=0):
    """The opcodes of a TorchScript module with attributes, pairs of a name and opcodes."""
    made = name("__torch__.Any", "Module") + b")\x81" + b"q" + bytes([memo])
    return made + b"}(" + b"".join(push(key) + x for key, x in attributes) + b"ub"


def legacy(path, pickled, keys=("0",), content=STORED, little=True):
    """A file of torch.save before PyTorch 1.6."""
    before = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little})
    written = b"".join(pickle.dumps(x, protocol=2) for x in before) + pickled + pickle.dumps(list(keys), protocol=2)
    path.write_bytes(written + content)
    return path
