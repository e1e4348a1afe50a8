"""Config files: overrides take the type of their field, and every mistake is one sentence that names it."""

from pathlib import Path

import pytest

from jax_mmreid.config_file import load_config
from jax_mmreid.errors import ConfigError

FILE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    fields = dict(epochs=3, rate=0.5, noise=False, name=arg, size=(4, 2), nothing=None, optim=dict(lr=1e-3, b1=0.9))
    return ConfigDict(fields | dict(options=dict()))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(FILE)
    return path


def test_the_argument_goes_to_get_config_and_overrides_take_the_type_of_their_field(file):
    fields = ["epochs=7", "rate=2", "noise=true", "size=(8,4)", "optim.lr=1e-5", "nothing=(1,)"]
    config = load_config(f"{file}:row=A", fields)
    assert config.to_dict() == dict(
        epochs=7, rate=2.0, noise=True, name="row=A", size=(8, 4), nothing=(1,), optim=dict(lr=1e-5, b1=0.9), options={}
    )
    assert isinstance(config.rate, float) and config.is_locked
    assert load_config(file, ["name=a=b", "size=8,4"]) == load_config(f"{file}:a=b", ["size=[8,4]"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "config.optim has no field 'lrr'; did you mean 'lr'?"),
        ("lr=1", "config has no field 'lr'; it has epochs, "),
        ("options.trial=1", "config.options has no field 'trial'; it has none"),
        ("epochs.x=1", "config.epochs is no group of fields, so config.epochs.x does not exist"),
        ("optim=1", "config.optim is a group of fields; set one of b1, lr"),
        ("epochs", "--config.epochs has no value; write --config.epochs=VALUE"),
        ("epochs=many", "config.epochs=many: expected a value of type int, such as 3"),
        ("epochs=1.5", "config.epochs=1.5: expected a value of type int"),
        ("noise=ture", "config.noise=ture: expected a value of type bool"),
        ("size=(32,x)", r"config.size=\(32,x\): expected a value of type tuple, such as \(4, 2\)"),
        ("size=3", "config.size=3: expected a value of type tuple"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(file, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(file, [override])
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match="^config file nofile.py does not exist; name one, as in --config=configs/"):
        load_config("nofile.py")
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"other.py has no function get_config\(arg\)"):
        load_config(tmp_path / "other.py")
    (tmp_path / "other.txt").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="other.txt is not a Python file"):
        load_config(tmp_path / "other.txt")


def test_a_defect_inside_a_config_file_passes_through(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(arg=''):\n    return [][1]\n")
    with pytest.raises(IndexError):
        load_config(tmp_path / "broken.py")


@pytest.mark.parametrize("file", sorted((Path(__file__).parent.parent / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_every_config_loads_and_takes_a_seed(file):
    assert load_config(file, ["seed=7", "data.data_dir=x=y"]).data.data_dir == "x=y"
