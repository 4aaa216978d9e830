"""Where peers are installed: each in an environment of its own under `.bench/`, never in ours.

The versions are those that were measured; pip's own configuration decides where they come from. An
environment whose packages have not changed since it was made is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[3] / ".bench"


class InstallError(Exception):
    """pip could not make an environment; holds its last line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment of one peer.

    Attributes:
        name: its folder below `.bench/`.
        packages: what pip installs, with versions.
        alone: what it installs afterwards without dependencies, where those are not all needed or
            can't all be had.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return FOLDER / self.name / "bin" / "python"

    @property
    def megabytes(self) -> int:
        """Its size on disk."""
        return (
            sum(
                path.lstat().st_size
                for path in (FOLDER / self.name).rglob("*")
                if not path.is_dir()
            )
            // 2**20
        )

    def install(self) -> None:
        """Make it, asking nothing.

        Raises:
            InstallError: pip could not.
        """
        stamp = FOLDER / self.name / ".installed"
        wanted = "\n".join((sys.version, *self.packages, *self.alone))
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"{self.name}: installing", flush=True)
        shutil.rmtree(stamp.parent, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(stamp.parent))
        pip = (str(self.python), "-m", "pip", "install", "--quiet", "--no-input")
        _run(*pip, *self.packages)
        if self.alone:
            _run(*pip, "--no-deps", *self.alone)
        stamp.write_text(wanted)


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_NO_WARN_CONFLICTS": "1"},
    )
    if done.returncode:
        raise InstallError((done.stderr or done.stdout).strip().splitlines()[-1])


TIFFSLIDE = Environment(name="tiffslide", packages=("tiffslide==3.0.1",))  # 4.0.0 needs Python 3.12
FASTSLIDE = Environment(name="fastslide", packages=("fastslide==0.8.1", "numpy==2.4.6"))
PYVIPS = Environment(
    name="pyvips", packages=("pyvips[binary]==3.2.0", "pyvips-binary==8.18.7", "numpy==2.4.6")
)
DATALOADER = Environment(
    name="dataloader",
    packages=("openslide-python==1.4.7", "openslide-bin==4.0.1.2", "torch==2.13.0", "numpy==2.4.6"),
)
LAZYSLIDE = Environment(
    name="lazyslide",
    packages=("lazyslide==0.13.0", "wsidata==0.12.0", "fastslide==0.8.1", "torch==2.13.0"),
)
# The CUDA libraries that cuCIM depends on are 3 GB; its CuImage runs on the CPU without them.
CUCIM = Environment(
    name="cucim",
    packages=("click==8.5.1", "lazy-loader==0.6", "numpy==2.4.6", "packaging==26.3"),
    alone=("cucim-cu12==26.10.0",),
)
# What its slide readers import, in versions that it allows, without its models (torchvision, timm,
# transformers) and notebooks. Only torch is newer than it allows, the release that we have; the
# readers do not compute with it.
TIATOOLBOX = Environment(
    name="tiatoolbox",
    packages=(
        "aiohttp==3.14.1",
        "dask==2026.7.0",
        "defusedxml==0.7.1",
        "filelock==3.28.0",
        "glymur==0.14.7",
        "imagecodecs==2026.1.14",
        "joblib==1.5.2",
        "matplotlib==3.11.0",
        "numpy==2.4.3",
        "opencv-python-headless==4.14.0.94",
        "openslide-bin==4.0.1.1",
        "openslide-python==1.4.3",
        "pandas==3.0.2",
        "pillow==12.1.1",
        "psutil==7.2.2",
        "pydicom==3.0.1",
        "pyyaml==6.0.2",
        "requests==2.34.1",
        "s3fs==2026.4.0",
        "scikit-image==0.26.0",
        "scipy==1.17.0",
        "shapely==2.1.2",
        "simpleitk==2.5.4",
        "tifffile==2026.2.24",
        "torch==2.13.0",
        "tqdm==4.68.4",
        "wsidicom==0.33.1",
        "zarr==3.1.6",
    ),
    alone=("tiatoolbox==2.1.3",),
)
