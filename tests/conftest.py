"""What several tests share: a very small sample, made once, and the real clips where the caller has them."""

import os
from pathlib import Path

import pytest

from dfdc_lib.config import PreprocessConfig
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess
from dfdc_lib.sample import make_sample

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory) -> Path:
    """Two parts of two originals and four fakes, twelve frames each."""
    return make_sample(tmp_path_factory.mktemp("data") / "small", n_parts=2, originals_per_part=2, n_frames=12)


@pytest.fixture(scope="session")
def small_work(small_sample) -> WorkFolder:
    """The small sample, preprocessed at every 6th frame."""
    work = WorkFolder(small_sample.parent / "work")
    preprocess(small_sample, work, PreprocessConfig(every=6))
    return work


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real DFDC clips that DFDC_TEST_VIDEOS names."""
    folder = os.environ.get("DFDC_TEST_VIDEOS")
    if not folder:
        pytest.skip("DFDC_TEST_VIDEOS is not set: no real DFDC clips to test with")
    return Path(folder)
