"""TrivialAugmentWide, RandAugment and AutoAugment equal torchvision's in every pixel.

Each operation with each magnitude and sign, and each policy, on fifty images: by checksums of what
torchvision makes of them, and directly where it is installed.
"""

import importlib.util
import platform

import numpy as np
import pytest
from helpers.sampling import sampled
from reference import augmentation as reference

from flaxdl.data import AutoAugment, RandAugment, TrivialAugmentWide
from flaxdl.data.image_operations import OPERATIONS, bits, spaced

CASES = reference.cases()
STORED = reference.stored()
IS_X86 = platform.machine() in ("x86_64", "AMD64")


def needs_torchvision():
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")


def ours(case, image):
    """Our results for each variant, from the draws of one batch of copies of an image."""
    variants = reference.variants(case)
    copies = np.repeat(image[None], len(variants), axis=0)
    settings = {
        "interpolation": case.interpolation,
        "fill": reference.fill(case, image.shape[-1]),
    }
    first, signs = (np.array(one) for one in zip(*variants, strict=True))
    if case.kind == "AutoAugment":
        policies = np.full(len(variants), case.operation)
        draws = {"policies": policies, "chances": first, "negative": signs == 0}
        return AutoAugment(**settings).augment(copies, draws)
    place = np.full(len(variants), OPERATIONS.index(case.operation))
    if case.kind == "TrivialAugmentWide":
        draws = {"operations": place, "bins": first, "negative": signs == 1}
        return TrivialAugmentWide(**settings).augment(copies, draws)
    results = []
    for number, magnitude in enumerate(first.tolist()):
        one = slice(number, number + 1)
        draws = {"operations": place[one, None], "negative": signs[one, None] == 1}
        augmentation = RandAugment(num_ops=1, magnitude=magnitude, **settings)
        results.append(augmentation.augment(copies[one], draws)[0])
    return results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_those_that_torchvision_gave(case):
    images = reference.images()
    assert len(images) == 50
    found = reference.checksums(case, [ours(case, image) for image in images])
    if IS_X86:
        assert found == STORED[str(case)]
    else:
        needs_torchvision()
        results = [reference.theirs(case, image) for image in images]
        assert found == reference.checksums(case, results)


# Every ninth has each augmentation, both interpolations, and operations of all sorts.
@pytest.mark.parametrize("case", sampled(CASES, CASES[::9].__contains__), ids=str)
def test_results_are_those_of_the_installed_torchvision(case):
    needs_torchvision()
    for image in reference.images():
        for result, expected in zip(ours(case, image), reference.theirs(case, image), strict=True):
            np.testing.assert_array_equal(result, expected)


def test_every_case_is_stored_once():
    assert list(STORED) == list(map(str, CASES))
    assert all(len(STORED[str(case)]) == len(reference.variants(case)) for case in CASES)
    assert len({case.operation for case in CASES if case.kind == "RandAugment"}) == 14


@pytest.mark.parametrize("count", [2, 3, 10, 31, 100])
def test_magnitudes_are_rounded_as_pytorch_rounds_them(count):
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("PyTorch does not use fused multiply-adds here")
    for first, last in [(0, 0.99), (0, 32), (255, 0), *((0, 150 / 331 * n) for n in range(1, 300))]:
        expected = torch.linspace(float(first), float(last), count).tolist()
        assert list(spaced(first, last, count)) == expected
    for removed in (4, 6):
        steps = torch.arange(count) / ((count - 1) / removed)
        assert list(bits(removed, count)) == (8 - steps.round().int()).tolist()


def test_15_of_31_translations_by_up_to_32_pixels_is_15():
    assert int(spaced(0, 32, 31)[15]) == 15
    assert spaced(0, 32, 31)[30] == 32
