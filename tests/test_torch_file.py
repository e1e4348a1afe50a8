"""Files of PyTorch: read whole and to the bit, refused when they hold more than tensors, and never run."""

import io
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jax_mmreid.errors import DataError
from jax_mmreid.weights import torch_archive

pytestmark = pytest.mark.reference


class Attack:
    """Unpickled by the book, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def module(torch):
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
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x.numpy())
        assert found[name].dtype == x.numpy().dtype and found[name].shape == tuple(x.shape)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_read_as_pytorch_reads_it(torch, module, tmp_path, monkeypatch):
    file = tmp_path / "clip.pt"
    torch.jit.trace(module, torch.randn(2, 5)).save(file)
    expected = torch.jit.load(file).state_dict()
    monkeypatch.setitem(sys.modules, "torch", None)  # which the reading does without
    assert_same(torch_archive.read(str(file)), expected)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_a_state_dict_is_read_wrapped_or_not(torch, module, tmp_path, wrapper):
    state = module.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "model.pth")
    assert_same(torch_archive.read(str(tmp_path / "model.pth")), state)


def test_bfloat16_keeps_its_bits(torch, tmp_path):
    x = torch.randn(3, 5).bfloat16()
    torch.save({"x": x}, tmp_path / "model.pth")
    found = torch_archive.read(str(tmp_path / "model.pth"))["x"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), x.float().numpy())


def archive(path, pickled, storage=b""):
    """A zip file that looks like a TorchScript archive."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clip/constants.pkl", b"")
        file.writestr("clip/data.pkl", pickled)
        file.writestr("clip/data/0", storage)
    return str(path)


def test_a_state_dict_with_code_is_refused_and_does_not_run(torch, tmp_path):
    torch.save({"x": torch.zeros(3), "y": Attack(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(DataError, match="model.pth is refused, nothing of it was run: it holds more than tensors"):
        torch_archive.read(str(tmp_path / "model.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_with_code_is_refused_and_does_not_run(torch, tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    with pytest.raises(DataError, match="model.pt is refused, nothing of it was run"):
        torch_archive.read(str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()


def test_an_archive_with_code_is_refused_and_does_not_run(tmp_path):
    file = archive(tmp_path / "clip.pt", pickle.dumps(Attack(tmp_path / "ran")))
    with pytest.raises(DataError, match=r"clip.pt is refused, .* \(it asks for .*\.open\)"):
        torch_archive.read(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (7,), (1,)), (4, (3,), (1,)), (0, (2, 3), (4, 1)), (3, (3,), (-1,)), (-1, (3,), (1,))],
)
def test_a_tensor_cannot_reach_outside_its_storage(torch, tmp_path, offset, shape, strides):
    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            return ("storage", torch.FloatStorage, "0", "cpu", 6) if x is storage else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, ())

    storage, file = object(), io.BytesIO()
    Pickler(file, protocol=2).dump(Tensor())
    path = archive(tmp_path / "clip.pt", file.getvalue(), np.arange(6, dtype=np.float32).tobytes())
    with pytest.raises(DataError, match="cannot read .*lies outside its storage of 6 numbers"):
        torch_archive.read(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["state dict", "archive"])
def test_a_truncated_file_is_named(torch, module, tmp_path, kind):
    file = tmp_path / "model.pt"
    if kind == "archive":
        torch.jit.trace(module, torch.randn(2, 5)).save(file)
    else:
        torch.save(module.state_dict(), file)
    for length in (0, 10, 500, len(file.read_bytes()) * 2 // 3):
        (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:length])
        with pytest.raises(DataError, match="cut.pt") as caught:
            torch_archive.read(str(tmp_path / "cut.pt"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"x": 1}}])
def test_what_is_not_a_state_dict_is_refused(torch, tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(DataError, match="model.pth is not a state dict"):
        torch_archive.read(str(tmp_path / "model.pth"))


def test_without_pytorch_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(DataError, match="model.pth needs PyTorch to be read; pip install"):
        torch_archive.read(str(tmp_path / "model.pth"))
