"""The mesh of devices, and which rows of a batch each process needs."""

import numpy as np
import pytest

from flaxdl.training.distributed.mesh import MeshShape, check_batch_size, make_mesh, process_rows

pytestmark = pytest.mark.eight_devices


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(fsdp=3), "all 8 devices, got data any, fsdp 3, tensor 1, .* a multiple of 3"),
        (MeshShape(data=2, fsdp=2), "all 8 devices, got data 2, fsdp 2, tensor 1, which uses 4"),
        (MeshShape(tensor=16), "which uses a multiple of 16"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_an_axis_without_devices_is_refused():
    with pytest.raises(ValueError, match="mesh.fsdp must be at least 1, got 0"):
        MeshShape(fsdp=0)


def test_one_process_has_all_rows():
    for shape in (MeshShape(), MeshShape(fsdp=2, tensor=4), MeshShape(tensor=8)):
        np.testing.assert_array_equal(process_rows(16, make_mesh(shape)), np.arange(16))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of the 8 devices.* got 100; use 96 or 104"):
        check_batch_size(100, make_mesh())
    with pytest.raises(ValueError, match="got 3; use 8"):
        check_batch_size(3, make_mesh())
