"""Captions to token ids: OpenAI's, those of a trained vocabulary, and faulty sources."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from input_pipeline.text.tokenizer import clean, open_tokenizer, trim
from jax_mmreid.batch import has_caption
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.models.language import TEMPLATES, template

START, END = 49406, 49407
GOLDEN = {  # OpenAI's ids, start and end left out
    "a man with short hair wearing a black t - shirt, blue jeans and white shoes.": [
        *(320, 786, 593, 3005, 2225, 3309, 320, 1449, 339, 268, 2523, 267, 1746, 10157, 537, 1579, 4079, 269)
    ],
    "": [],
}
SENTENCES = {
    "person": "An image of a x person, who shows the x x x x attributes.",
    "vehicle": "An image of a x vehicle, which shows the x x x x attributes.",
}
CLEAN = {
    "a man&#39;s shirt": "a man's shirt",
    "it&amp;amp;s": "it&s",
    "â€œquotedâ€\x9d": '"quoted"',
    "ﬁne   spaces": "fine spaces",
    "\tA man\n\nin  Red\r\n": "a man in red",
    "don’t": "don't",
    "a\u00a0man\u3000here": "a man here",
    "\ud800": "\ufffd",
    "CAFÉ": "café",
    "": "",
    " \n ": "",
}
COLOURS, GARMENTS = ("red", "blue", "dark green", "white", "beige"), ("jacket", "coat", "t-shirt", "skirt", "trousers")
CAPTIONS = [
    f"A {build} person wearing a {colour} {garment}, with {extra}."
    for build in ("tall", "small", "slim")
    for colour in COLOURS
    for garment in GARMENTS
    for extra in ("a backpack", "short hair", "nothing else")
]
UNSEEN = ["a quokka reads über-Zeitung", "東京 😀 \x7f", "x" * 40, "<|endoftext|> and <end_of_text>", "?!... ~~"]


@pytest.fixture(scope="module")
def builtin():
    pytest.importorskip("instant_clip_tokenizer", reason="instant-clip-tokenizer has no wheel for this Python here")
    return open_tokenizer("builtin")


@pytest.fixture(scope="module")
def trained():
    return open_tokenizer("train", captions=CAPTIONS)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "deep" / "folder"
    trained.save(str(path))
    return path


@pytest.fixture(params=["builtin", "trained", "folder"])
def tokenizer(request):
    """Each of the three sources."""
    found = request.getfixturevalue(request.param)
    return open_tokenizer(str(found)) if request.param == "folder" else found


@pytest.mark.parametrize("text", GOLDEN)
def test_builtin_ids_are_openais(builtin, text):
    ids = builtin.encode([text])
    want = [START, *GOLDEN[text], END]
    assert ids.dtype == np.int32
    assert ids.tolist() == [want + [0] * (77 - len(want))]
    assert (builtin.vocab, builtin.start, builtin.end) == (49408, START, END)


def test_the_templates_are_the_ids_of_their_sentences(builtin):
    assert SENTENCES.keys() == set(TEMPLATES)
    for kind, sentence in SENTENCES.items():
        assert trim(builtin.encode([sentence]))[0].tolist() == list(template(kind, prompts=4).ids)


def test_every_word_of_clips_vocabulary_encodes(builtin):
    assert builtin.encode(["jekyll"])[0, :3].tolist() == [START, 49405, END]


def test_a_long_caption_is_cut_and_still_ends(tokenizer):
    ids = tokenizer.encode(["a " * 200, "a"])
    assert ids.shape == (2, 77)
    assert ids[0, -1] == tokenizer.end and ids[0].argmax() == 76
    assert (ids[0, 1:-1] == ids[1, 1]).all()


@pytest.mark.parametrize("text", CLEAN)
def test_captions_are_cleaned_before_they_are_encoded(tokenizer, text):
    assert clean(text) == CLEAN[text] == clean(clean(text))
    np.testing.assert_array_equal(tokenizer.encode([text]), tokenizer.encode([CLEAN[text]]))


def test_a_row_is_start_words_end_and_zeros_for_any_caption(tokenizer):
    assert (tokenizer.start, tokenizer.end) == (tokenizer.vocab - 2, tokenizer.vocab - 1)
    for row in tokenizer.encode([*CAPTIONS[:5], *UNSEEN, *CLEAN]):
        end = row.argmax()
        assert row[0] == tokenizer.start and row[end] == tokenizer.end
        assert (row[1:end] < tokenizer.start).all() and not row[end + 1 :].any()


def test_has_caption_is_true_where_there_are_tokens(tokenizer):
    texts = ["", "!", " \n ", "a", "&nbsp;", "a " * 200, *UNSEEN]  # "!" is id 0, as padding is
    ids = tokenizer.encode(texts)
    want = [bool(clean(text)) for text in texts]
    assert has_caption(ids).tolist() == has_caption(trim(ids)).tolist() == want and want[:5] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert has_caption(ids.reshape(1, len(texts), 1, -1)).shape == (1, len(texts), 1)
    for row in ids[~has_caption(ids)]:
        assert row.tolist() == [tokenizer.start, tokenizer.end] + [0] * 75


def test_no_captions_and_one_that_is_not_in_a_list(tokenizer):
    assert tokenizer.encode([]).shape == (0, 77)
    with pytest.raises(TypeError, match="expected a list"):
        tokenizer.encode("a man")


def test_trim_leaves_the_longest_caption_whole(tokenizer):
    ids = tokenizer.encode(["!", "! a man !", ""])  # "!" is id 0, as padding is
    short = trim(ids)
    assert short.shape[1] == ids[1].argmax() + 1
    assert not ids[:, short.shape[1] :].any() and (short[1, -1] == tokenizer.end)
    assert trim(ids[:0]).shape[0] == 0


def test_a_shorter_context(builtin):
    short = open_tokenizer("builtin", context=5).encode(["a man with short hair", "a"])
    assert short.tolist() == [[START, 320, 786, 593, END], [START, 320, END, 0, 0]]
    with pytest.raises(ValueError, match="context=1"):
        open_tokenizer("builtin", context=1)


def test_training_learns_the_words_of_its_captions(trained):
    ids = trained.encode(["person wearing trousers", "unseen"])
    assert ids[0].argmax() == 4 and ids[1].argmax() > 3
    assert 514 < trained.vocab < 4096
    assert open_tokenizer("train", captions=CAPTIONS, vocab_size=530).vocab == 530


def test_training_depends_on_nothing_but_the_captions(trained):
    shuffled = random.Random(1).sample(CAPTIONS * 2, 2 * len(CAPTIONS))
    code = """
import json, sys
from input_pipeline.text.tokenizer import open_tokenizer
captions, texts = json.load(sys.stdin)
tokenizer = open_tokenizer("train", captions=captions)
assert not sys.modules.keys() & {"jax", "flax", "torch"}
json.dump(tokenizer.encode(texts).tolist(), sys.stdout)
"""
    texts = CAPTIONS + UNSEEN
    for seed, threads, captions in (("1", "1", CAPTIONS), ("2", "3", shuffled)):
        environment = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        assert json.loads(run(code, environment, json.dumps([captions, texts]))) == trained.encode(texts).tolist()


def test_training_cleans_its_captions(trained):
    dirty = [f"  {text.upper()}&nbsp;".replace(" ", "\n") for text in CAPTIONS]
    np.testing.assert_array_equal(
        open_tokenizer("train", captions=dirty).encode(CAPTIONS + UNSEEN), trained.encode(CAPTIONS + UNSEEN)
    )


def test_words_that_are_not_in_the_training_captions_decode_to_themselves(trained, folder):
    clip = CLIPTokenizer.from_pretrained(folder)
    for text in UNSEEN:
        row = trained.encode([text])[0]
        decoded = clip.decode(row[1 : row.argmax()])
        assert decoded.replace(" ", "") == clean(text).replace(" ", "")


def test_training_needs_captions_and_room_for_all_bytes():
    for captions in ([], ["", " \n"]):
        with pytest.raises(DataError, match="no training captions"):
            open_tokenizer("train", captions=captions)
    with pytest.raises(ValueError, match="vocab_size=513"):
        open_tokenizer("train", captions=CAPTIONS, vocab_size=513)


def test_a_saved_folder_is_the_same_tokenizer_here_and_in_transformers(trained, folder):
    texts = CAPTIONS + UNSEEN[:3] + UNSEEN[4:]  # transformers reads a mark inside a caption as the mark itself
    read, ids = open_tokenizer(str(folder)), trained.encode(texts)
    assert (read.vocab, read.start, read.end) == (trained.vocab, trained.start, trained.end)
    np.testing.assert_array_equal(read.encode(texts), ids)
    theirs = CLIPTokenizer.from_pretrained(folder)([clean(text) for text in texts])["input_ids"]
    assert theirs == [row[: row.argmax() + 1].tolist() for row in ids]


def test_a_folder_of_vocab_and_merges_is_read_too(trained, folder, tmp_path):
    write_vocab_and_merges(folder, tmp_path)
    np.testing.assert_array_equal(open_tokenizer(str(tmp_path)).encode(CAPTIONS), trained.encode(CAPTIONS))


def test_the_builtin_vocabulary_saves_nothing(builtin, tmp_path):
    builtin.save(str(tmp_path / "folder"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocab.json": None}, "holds no tokenizer"),
        ({"merges.txt": None}, "holds no tokenizer"),
        ({"vocab.json": "{"}, "cannot read"),
        ({"merges.txt": "#version: 0.2\nno such\n"}, "cannot read"),
        ({"tokenizer.json": "{}"}, "cannot read"),
        ({"tokenizer.json": "["}, "cannot read"),
        ("<|endoftext|>", "lacks '<|endoftext|>'"),
        ("a</w>", "lacks 'a</w>'"),
        ("swap", "must be the largest"),
    ],
    ids=str,
)
def test_a_folder_that_is_no_clip_tokenizer_is_one_line(folder, tmp_path, change, reason):
    write_vocab_and_merges(folder, tmp_path, merges=isinstance(change, dict))
    if isinstance(change, dict):
        for name, text in change.items():
            (tmp_path / name).unlink(missing_ok=True)
            if text is not None:
                (tmp_path / name).write_text(text)
    else:
        vocab = json.loads((tmp_path / "vocab.json").read_text())
        if change == "swap":
            vocab["<|startoftext|>"], vocab["<|endoftext|>"] = vocab["<|endoftext|>"], vocab["<|startoftext|>"]
        else:
            del vocab[change]
        (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(DataError) as error:
        open_tokenizer(str(tmp_path))
    assert reason in str(error.value) and str(tmp_path) in str(error.value)
    assert "'builtin'" in str(error.value) and "\n" not in str(error.value)


def test_builtin_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(ConfigError, match="not installed.*'train'"):
        open_tokenizer("builtin")


@pytest.mark.parametrize("source", ["bultin", "/no/such/folder", "a/b/c", "."])
def test_a_source_that_does_not_exist(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, DataError), match="'builtin' or 'train'"):
        open_tokenizer(source)


OPEN = """
import time
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid import hub
from jax_mmreid.errors import DataError
hub.SECONDS = 0.5
try:
    print(open_tokenizer("some/one").encode(["a man"])[0].tolist())
except DataError as error:
    print("error:", error)
"""


@pytest.mark.parametrize("network", ["off", "refused", "silent"])
def test_a_hub_id_without_network_is_one_line_and_soon(tmp_path, network):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if network == "silent":
            server.listen()  # connections are accepted and never answered
        out = run(OPEN, hub(tmp_path, server.getsockname()[1], offline=network == "off"))
    assert out.startswith("error: no local path some/one, and it cannot be downloaded from the Hub (")
    assert "name its folder" in out and len(out.splitlines()) == 1


def test_a_hub_id_in_the_cache_needs_no_network(trained, folder, tmp_path):
    cached = tmp_path / "hub" / "models--some--one"
    commit = "0123456789" * 4
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots").mkdir()
    folder_of_cache = cached / "snapshots" / commit
    open_tokenizer(str(folder)).save(str(folder_of_cache))
    out = run(OPEN, hub(tmp_path, 1, offline=False))
    assert json.loads(out) == trained.encode(["a man"])[0].tolist()


def hub(home, port, *, offline):
    """An environment in which the Hub's cache is `home` and the Hub a port of this machine."""
    options = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    return options | {"HF_HUB_OFFLINE": str(int(offline)), "NO_PROXY": "127.0.0.1"}


def run(code, environment, text=""):
    """What a Python process prints, within two minutes."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | environment
    options = dict(input=text, env=environment, capture_output=True, text=True, timeout=120)
    process = subprocess.run([sys.executable, "-c", code], **options)
    assert process.returncode == 0, process.stderr
    return process.stdout


def write_vocab_and_merges(folder, target, merges=True):
    """The tokenizer.json of `folder` as the two files that came before it."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    pairs = [" ".join(pair) for pair in model["merges"]] if merges else []
    (target / "vocab.json").write_text(json.dumps(model["vocab"]))
    (target / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
