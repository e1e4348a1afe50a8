"""`batch.check` of batches with captions."""

import numpy as np
import pytest

from jax_mmreid.batch import check

BOTH = ("rgb", "ir")


def batch_of(**changes):
    number = np.zeros(2, np.int32)
    yes = np.ones(2, bool)
    images = {m: np.zeros((2, 4, 3, 3), np.uint8) for m in BOTH}
    captions = {m: np.tile(np.int32([7, 3, 8, 0, 0]), (2, 1)) for m in ("rgb", "tir")}  # start, a word, end
    present = dict.fromkeys((*BOTH, "text/rgb", "text/tir", "text"), yes)
    batch = {"images": images, "present": present, "text": captions}
    return batch | dict.fromkeys(("pid", "camid", "view", "index"), number) | changes


def captions(**ids):
    """A batch with these captions and the masks that belong to them."""
    present = dict.fromkeys((*BOTH, "text", *(f"text/{m}" for m in ids)), np.ones(2, bool))
    return dict(text=ids, present=present)


def test_check_returns_a_batch_with_text():
    batch = batch_of()
    assert check(batch) is batch


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(text={}), "'text' has no modality"),
        (captions(rgb=np.zeros((2, 5), np.int64)), r"text\['rgb'\] is int64\(2, 5\), expected int32\(2, 5\)"),
        (captions(rgb=np.zeros((3, 5), np.int32)), r"text\['rgb'\] is int32\(3, 5\), expected int32\(2, 5\)"),
        (captions(rgb=np.zeros(2, np.int32)), r"text\['rgb'\] is int32\(2,\)"),
        (
            captions(rgb=np.zeros((2, 5), np.int32), ir=np.zeros((2, 6), np.int32)),
            r"text\['ir'\] is int32\(2, 6\), expected int32\(2, 5\)",
        ),
        (dict(present=dict.fromkeys(BOTH, np.ones(2, bool))), "there are .*'text'.* but present has .'ir', 'rgb'."),
        (dict(present=batch_of()["present"] | {"text": np.ones(2, int)}), r"present\['text'\] is int64"),
        (
            dict(present=batch_of()["present"] | {"text/tir": np.array([True, False])}),
            r"present\['text/tir'\] is not has_caption\(text\['tir'\]\)",
        ),
        (dict(present=batch_of()["present"] | {"text": np.array([True, False])}), "is not True exactly where every"),
        (dict(images={}), "'images' has no modality"),
    ],
)
def test_check_names_the_first_fault_of_text(changes, message):
    with pytest.raises(ValueError, match=message):
        check(batch_of(**changes))


def test_check_refuses_a_mask_of_absent_text():
    batch = batch_of()
    del batch["text"]
    with pytest.raises(ValueError, match="there are .'ir', 'rgb'. but present has .'ir', 'rgb', 'text', 'text/rgb', "):
        check(batch)
