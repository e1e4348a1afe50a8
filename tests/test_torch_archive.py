"""Files of PyTorch: read whole and to the bit, and refused when they claim more than they hold."""

import struct
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_files import NUMBERS, legacy, push, refused, state_dict, tensor, zip_file

from jax_mmreid.errors import DataError
from jax_mmreid.weights import torch_archive


def test_tensors_are_views_of_their_storages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # which reading does without
    pickled = state_dict(
        turned=tensor((2, 2), (1, 2), 1),
        one=tensor((1, 1), (10**15, 7), 5),
        empty=tensor((0,), (1,)),
        other=tensor((3,), (1,), key="b", size=3, kind="LongStorage"),
    )
    path = zip_file(tmp_path / "model.pth", pickled, **{"0": NUMBERS, "b": np.array([7, 8, 9])})
    found = torch_archive.read(path)
    np.testing.assert_array_equal(found["turned"], [[1, 3], [2, 4]])
    np.testing.assert_array_equal(found["one"], [[5]])
    np.testing.assert_array_equal(found["other"], [7, 8, 9])
    assert found["empty"].shape == (0,) and found["other"].dtype == np.int64


def test_tied_weights_are_read_under_both_names(tmp_path):
    for x in torch_archive.read(zip_file(tmp_path / "model.pth", state_dict(x=tensor(), tied=tensor()))).values():
        np.testing.assert_array_equal(x, NUMBERS.reshape(2, 3))


# What a file may claim.


@pytest.mark.parametrize(
    "wrong, match",
    [
        (dict(shape=(10**12,), strides=(0,)), "larger than its storage of 6 numbers"),
        (dict(shape=(7,), strides=(0,)), "larger than its storage of 6 numbers"),
        (dict(shape=(0, 10**9), strides=(1, 1)), "larger than its storage of 6 numbers"),
        (dict(shape=(2, 3), strides=(4, 1)), "lies outside its storage of 6 numbers"),
        (dict(shape=(3,), strides=(1,), offset=4), "lies outside its storage of 6 numbers"),
        (dict(shape=(3,), strides=(-1,), offset=3), "has a negative number"),
        (dict(shape=(3,), strides=(1,), offset=-1), "has a negative number"),
        (dict(shape=(-2, -3)), "has a negative number"),
        (dict(shape=(2, 3), strides=(1,)), "not a tensor as PyTorch writes one"),
        (dict(shape=(10**5000, 1)), "not a tensor as PyTorch writes one"),
        (dict(shape=("2", "3")), "not a tensor as PyTorch writes one"),
        (dict(shape=(1,) * 40, strides=(1,) * 40), "not a tensor as PyTorch writes one"),
        (dict(size=-6), "storage '0' has no size"),
        (dict(size=10**12), "storages claim 4000000000000 bytes, and the whole file has"),
        (dict(size=20), "storage 0 has 24 bytes instead of 80"),
        (dict(size=5, shape=(5,), strides=(1,)), "data/0 has 24 bytes, of which at most 20 are read"),
        (dict(key="1"), "model/data/1 is missing"),
        (dict(kind="ComplexFloatStorage"), r"holds more than tensors \(it asks for torch.ComplexFloatStorage\)"),
    ],
)
def test_a_tensor_that_is_not_in_its_storage_is_refused(tmp_path, wrong, match):
    refused(zip_file(tmp_path / "model.pth", state_dict(x=tensor(**wrong))), match)


def test_tensors_that_overlap_are_refused(tmp_path):
    """A hundred views of a storage are a hundred times as many numbers once somebody works with them."""
    views = {f"x{i}": tensor((100 - i,), (1,), i, size=100) for i in range(100)}
    path = zip_file(tmp_path / "model.pth", state_dict(**views), **{"0": np.zeros(100, np.float32)})
    refused(path, r"its tensors overlap, 20200 bytes in storages of 400; save x.clone\(\) of each instead")


def test_a_storage_of_two_sizes_is_refused(tmp_path):
    pickled = state_dict(x=tensor(), y=tensor((2,), (1,), size=3, kind="DoubleStorage"))
    refused(zip_file(tmp_path / "model.pth", pickled), "gives one storage two sizes or two types")


@pytest.mark.parametrize("member", ["data/0", "data.pkl"])
def test_a_compressed_member_is_refused(tmp_path, member):
    """Compressed, zeros have a thousandth of their size; torch.save compresses nothing."""
    count, storages = 6, {}
    if member == "data/0":
        count, storages = 5_000_000, {"0": np.zeros(5_000_000, np.float32)}
    pickled = state_dict(x=tensor((count,), (1,), size=count))
    if member == "data.pkl":
        pickled = pickled[:2] + push("." * 15_000_000) + b"0" + pickled[2:]  # a text that is dropped again
    path = zip_file(tmp_path / "model.pth", pickled, (member,), **storages)
    tracemalloc.start()
    refused(path, f"model/{member} is compressed, which torch.save never does; save the file again")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_member_whose_two_sizes_differ_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    zip_file(path, state_dict(x=tensor()))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"model/data/0") - 46 + 24  # its size in the list of members, after the compressed one
    assert content[at : at + 4] == struct.pack("<L", 24)
    content[at : at + 4] = struct.pack("<L", 2**31)
    path.write_bytes(content)
    refused(path, "model/data/0 is compressed")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    zip_file(path, state_dict(x=tensor()))
    content = path.read_bytes()
    path.write_bytes(content[:-10] + struct.pack("<L", 2**31) + content[-6:])
    refused(path, "its list of members has 2147483648 bytes, of which at most 20000000 are read")
    path.write_bytes(content)
    monkeypatch.setattr(torch_archive, "MAX_MEMBERS", 2)
    refused(path, "it has 3 members, of which at most 2 are read")


def test_a_pickle_beyond_its_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "PICKLE_BYTES", 100)
    refused(zip_file(tmp_path / "model.pth", state_dict(x=tensor())), "data.pkl has .* bytes, of which at most 100")


def test_numbers_of_the_other_byte_order_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", state_dict(x=tensor()))
        file.writestr("model/byteorder", b"big")
    refused(path, "its numbers are big-endian; save the file again")


def test_an_old_file_is_read_and_its_claims_are_checked(tmp_path):
    path = legacy(tmp_path / "model.pth", state_dict(x=tensor()))
    np.testing.assert_array_equal(torch_archive.read(path)["x"], NUMBERS.reshape(2, 3))
    refused(legacy(path, state_dict(x=tensor((10**12,), (0,)))), "larger than its storage")
    refused(legacy(path, state_dict(x=tensor(size=10**12))), "storages claim 4000000000000 bytes")
    refused(legacy(path, state_dict(x=tensor(size=9))), "storage 0 is not where it should be")
    refused(legacy(path, state_dict(x=tensor()), content=struct.pack("<q", 6) + b"1234"), "storage 0 has 4 bytes")
    refused(legacy(path, state_dict(x=tensor()), keys=("0", "1")), "list of storages does not match its tensors")
    refused(legacy(path, state_dict(x=tensor()), keys=([],)), "list of storages does not match its tensors")
    refused(legacy(path, state_dict(x=tensor()), little=False), "big-endian")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_damaged_file_is_read_or_refused(tmp_path, form):
    """Whatever bytes are changed or lost, there is one line and no traceback."""
    path = tmp_path / "model.pth"
    pickled = state_dict(x=tensor(), y=tensor((2,), (1,), key="1", size=2))
    if form == "zip":
        zip_file(path, pickled, **{"0": NUMBERS, "1": NUMBERS[:2]})
    else:
        content = struct.pack("<q", 6) + NUMBERS.tobytes() + struct.pack("<q", 2) + NUMBERS[:2].tobytes()
        legacy(path, pickled, keys=("0", "1"), content=content)
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        content = bytearray(whole)
        for at in rng.integers(len(whole), size=rng.integers(1, 4)):
            content[at] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(whole)) if rng.random() < 0.1 else None])
        try:
            torch_archive.read(path)
        except DataError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert 100 < refusals < 400


# What PyTorch itself writes.


@pytest.fixture
def network(torch):
    """A module with parameters, buffers and submodules, half in half precision, some views of one storage."""

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1 = torch.nn.LayerNorm(5)
            self.attn = torch.nn.MultiheadAttention(6, 2)

        def forward(self, x):
            return self.ln_1(x)

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Inner()
            self.text_projection = torch.nn.Parameter(torch.randn(3, 5).half())
            self.turned = torch.nn.Parameter(torch.randn(4, 3).T)
            self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
            self.register_buffer("context_length", torch.tensor(77))

        def forward(self, x):
            return self.visual(x)

    return Outer().eval()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x.numpy())
        assert found[path].dtype == x.numpy().dtype and found[path].shape == tuple(x.shape)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_is_read_as_pytorch_reads_it(torch, network, tmp_path):
    file = tmp_path / "clip.pt"
    torch.jit.trace(network, torch.randn(2, 5)).save(file)
    assert_same(torch_archive.read(str(file)), torch.jit.load(file).state_dict())


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_a_state_dict_is_read_wrapped_or_not(torch, network, tmp_path, wrapper, zipped):
    state = network.state_dict()
    file = tmp_path / "model.pth"
    torch.save({wrapper: state} if wrapper else state, file, _use_new_zipfile_serialization=zipped)
    assert_same(torch_archive.read(str(file)), state)


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_keeps_its_bits(torch, tmp_path, zipped):
    kinds = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
    tensors = {kind: (50 * torch.randn(3, 5)).to(getattr(torch, kind)) for kind in kinds}
    tensors["parameter"] = torch.nn.Parameter(torch.randn(2))
    torch.save(tensors | {"bfloat16": torch.randn(3, 5).bfloat16()}, tmp_path / "model.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    found = torch_archive.read(str(tmp_path / "model.pth"))
    x = found.pop("bfloat16")
    assert x.dtype == ml_dtypes.bfloat16 and (x.astype(np.float32) != 0).all()
    expected = torch.load(tmp_path / "model.pth")["bfloat16"].float()
    np.testing.assert_array_equal(x.astype(np.float32), expected)
    assert_same(found, {kind: x.detach() for kind, x in tensors.items()})


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["state dict", "archive"])
def test_a_truncated_file_is_named(torch, network, tmp_path, kind):
    file = tmp_path / "model.pt"
    if kind == "archive":
        torch.jit.trace(network, torch.randn(2, 5)).save(file)
    else:
        torch.save(network.state_dict(), file)
    for length in (0, 10, 500, len(file.read_bytes()) * 2 // 3):
        (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:length])
        refused(tmp_path / "cut.pt", "cannot read .*cut.pt")
