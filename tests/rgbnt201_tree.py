"""A small tree in the layout of RGBNT201, for tests of how it is read."""

from PIL import Image

ALL = ("rgb", "nir", "tir")
TRAIN = ("000012_cam1_0_00", "000003_cam2_0_01", "000003_cam1_1_07", "000140_cam12_0_02", "000012_cam3_0_00")
TEST = ("000200_cam2_0_00", "000200_cam1_0_03")


def write_tree(root, train=TRAIN, test=TEST):
    for folder, names in (("train_171", train), ("test", test)):
        for spectrum in ("RGB", "NI", "TI"):
            (root / folder / spectrum).mkdir(parents=True)
            for name in names:
                Image.new("RGB", (3, 5)).save(root / folder / spectrum / f"{name}.jpg")
    return root
