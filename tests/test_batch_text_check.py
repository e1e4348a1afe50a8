"""`batch.check` of batches with captions."""

import numpy as np
import pytest

from jax_mmreid.batch import check

BOTH = ("rgb", "ir")


def batch_of(**changes):
    number = np.zeros(2, np.int32)
    yes = np.ones(2, bool)
    images = {m: np.zeros((2, 4, 3, 3), np.uint8) for m in BOTH}
    captions = {m: np.zeros((2, 5), np.int32) for m in ("rgb", "tir")}
    batch = {"images": images, "present": dict.fromkeys((*BOTH, "text"), yes), "text": captions}
    return batch | dict.fromkeys(("pid", "camid", "view", "index"), number) | changes


def test_check_returns_a_batch_with_text():
    batch = batch_of()
    assert check(batch) is batch


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(text={}), "'text' has no modality"),
        (dict(text={"rgb": np.zeros((2, 5), np.int64)}), r"text\['rgb'\] is int64\(2, 5\), expected int32\(2, 5\)"),
        (dict(text={"rgb": np.zeros((3, 5), np.int32)}), r"text\['rgb'\] is int32\(3, 5\), expected int32\(2, 5\)"),
        (dict(text={"rgb": np.zeros(2, np.int32)}), r"text\['rgb'\] is int32\(2,\)"),
        (
            dict(text={"rgb": np.zeros((2, 5), np.int32), "ir": np.zeros((2, 6), np.int32)}),
            r"text\['ir'\] is int32\(2, 6\), expected int32\(2, 5\)",
        ),
        (dict(present=dict.fromkeys(BOTH, np.ones(2, bool))), "there are .*'text'.* but present has .'ir', 'rgb'."),
        (
            dict(present=dict.fromkeys((*BOTH, "text"), np.ones(2, bool)) | {"text": np.ones(2, int)}),
            r"present\['text'\] is int64",
        ),
        (dict(images={}), "'images' has no modality"),
    ],
)
def test_check_names_the_first_fault_of_text(changes, message):
    with pytest.raises(ValueError, match=message):
        check(batch_of(**changes))


def test_check_refuses_a_mask_of_text_that_is_not_there():
    batch = batch_of()
    del batch["text"]
    with pytest.raises(ValueError, match="there are .'ir', 'rgb'. but present has .'ir', 'rgb', 'text'."):
        check(batch)
