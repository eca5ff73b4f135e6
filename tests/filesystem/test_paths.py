"""`~` is the home folder wherever a path is given, and never the name of a folder."""

import ntpath
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flaxdl import load_config
from flaxdl.analysis.learning_rate import LearningRateCurve
from flaxdl.data import Arrays, Images, Transform
from flaxdl.exporters.hugging_face import export_hugging_face
from flaxdl.filesystem import paths
from flaxdl.filesystem.paths import local_path, relative_path
from flaxdl.models import Bert, SimpleCNN
from flaxdl.pretrained import evaluate_pretrained
from flaxdl.report.listing import list_runs
from flaxdl.runs.workdir import Workdir

pytestmark = pytest.mark.quick

CONFIG = """from flaxdl import Config
from flaxdl.data import Arrays
from flaxdl.models import SimpleCNN
config = Config(model=SimpleCNN(), data=Arrays('x.npz'))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder beside the working directory, where nothing may be made."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


def test_only_a_tilde_at_the_beginning_is_replaced(home):
    assert local_path("~/a") == local_path("~") / "a" == home / "a"
    for name in ("a/~", "~nobody-of-this-name/a", "~.npz", "./~/a"):
        assert str(local_path(name)) == name.removeprefix("./")


def test_files_are_read_from_the_home_folder(home):
    np.savez(home / "d.npz", train_inputs=np.zeros((10, 2)), train_label=np.arange(10) % 2)
    assert len(Arrays("~/d.npz", validation_fraction=0.2).load(0).train) == 8
    (home / "config_at_home.py").write_text(CONFIG)
    assert load_config("~/config_at_home.py").model == SimpleCNN()
    Image.new("L", (4, 4), 7).save(home / "x.png")
    assert (Images().read(["~/x.png"], {"inputs": (4, 4, 1)})["inputs"] == 7).all()
    np.save(home / "x.npy", np.ones(3))
    assert Transform().read(["~/x.npy"], {"inputs": (3,)})["inputs"].sum() == 3
    with pytest.raises(ValueError, match=f"{home}/imagenet"):
        evaluate_pretrained("resnet18", "~/imagenet")
    with pytest.raises(ValueError, match=f"there is no folder {home}/runs"):
        list_runs("~/runs")


def test_files_are_written_to_the_home_folder(home):
    with Workdir("~/runs/x").locked():
        assert (home / "runs" / "x").is_dir()
    curve = LearningRateCurve(np.geomspace(1e-5, 1, 20), np.linspace(2, 1, 20))
    assert curve.draw("~/sweep") == home / "sweep" / "learning_rate.png"
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_layers": 1, "num_heads": 1}
    export_hugging_face(Bert(**sizes, feed_forward_size=4), {"params": {}}, "~/my-bert")
    assert (home / "my-bert" / "config.json").is_file()


def test_a_path_on_another_drive_of_windows_stays_absolute(monkeypatch):
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath, sep="\\"))
    assert relative_path("C:\\pets\\cats\\1.png", "C:\\pets") == "cats/1.png"
    assert relative_path("C:/1.png", "C:\\pets") == "../1.png"
    assert relative_path("D:/cats/1.png", "C:\\pets") == "D:/cats/1.png"
