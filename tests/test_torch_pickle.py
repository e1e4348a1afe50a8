"""Pickles in files of PyTorch: tensors and their containers are read, all else is refused and never run."""

import pickle
import struct

import numpy as np
import pytest
from torch_files import NUMBERS, Attack, module, push, refused, tensor, zip_file

from jax_mmreid.weights import torch_archive, torch_pickle


@pytest.mark.parametrize("form", ["zip", "bare"])
def test_code_is_refused_and_does_not_run(tmp_path, form):
    path = tmp_path / "model.pt"
    pickled = pickle.dumps({"x": Attack(tmp_path / "ran")}, protocol=2)
    zip_file(path, pickled) if form == "zip" else path.write_bytes(pickled)
    refused(path, r"model.pt is refused, nothing of it was run: it holds more than tensors \(it asks for .*open\)$")
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_module_is_read_by_its_attributes(tmp_path):
    inner = module(("weight", tensor()), ("training", push(False)))
    path = zip_file(tmp_path / "clip.pt", b"\x80\x02" + module(("visual", inner), ("size", push(7))) + b".")
    found = torch_archive.read(path)
    assert list(found) == ["visual.weight"]
    np.testing.assert_array_equal(found["visual.weight"], NUMBERS.reshape(2, 3))


@pytest.mark.parametrize(
    "inner",
    [b"h\xc8", module(("a", b"h\xc8"), ("b", b"h\xc8"), memo=201)],
    ids=["a module in itself", "two names for each"],
)
def test_modules_in_a_circle_are_refused(tmp_path, inner):
    pickled = b"\x80\x02" + module(("x" * 100, inner), memo=200) + b"."
    refused(zip_file(tmp_path / "clip.pt", pickled), "its module has an attribute whose name is no text of 1000")


def test_too_many_attributes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_ATTRIBUTES", 10)
    pickled = b"\x80\x02" + module(*((f"x{i}", tensor()) for i in range(11))) + b"."
    refused(zip_file(tmp_path / "clip.pt", pickled), "its module has more than 10 attributes")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]q\x00(K\x01K\x02e.",  # [1, 2]
        b"\x80\x02}X\x05\x00\x00\x00epochK\x03s.",  # {"epoch": 3}
        b"\x80\x02}K\x01" + tensor() + b"s.",  # {1: tensor}
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path, pickled):
    refused(zip_file(tmp_path / "model.pth", pickled), "model.pth is refused, .* (not a state dict|no text)")


@pytest.mark.parametrize(
    "pickled, match",
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "gives an object the number 2147483647"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "cannot read .*expected 1099511627776 bytes"),
        (b"\x80\x02\x85.", "cannot read"),
        (b"", "cannot read .*exhausted"),
    ],
)
def test_a_pickle_that_asks_for_memory_or_is_cut_is_refused(tmp_path, pickled, match):
    refused(zip_file(tmp_path / "model.pth", pickled), match)
