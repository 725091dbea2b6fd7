"""Packaging of sl_detectron. detectron2 itself has no release on PyPI: see README.md."""

import re
from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (HERE / "sl_detectron/__init__.py").read_text(), re.MULTILINE
).group(1)

DEMO = ["scikit-learn", "matplotlib"]
AUDIT = ["cleanlab", "scikit-learn", "matplotlib"]
# tools/make_table.py; tools/sweep.py --executor.
SWEEP = ["pandas", "matplotlib"]
SLURM = ["submitit"]
VISUALIZE = ["matplotlib", "opencv-python-headless"]
TEST = [*DEMO, *AUDIT, *SWEEP, *SLURM, "pytest", "pytest-xdist", "hypothesis", "mpmath"]
# What single tests drive, and skip without: a browser, and PointRend, which imports OpenCV.
TEST += ["selenium", "opencv-python-headless"]
# The site of the documentation.
DOCS = ["mkdocs-material", "mkdocstrings[python]"]
DEV = [*TEST, *DOCS, "ruff", "mypy", "types-tabulate", "types-PyYAML", "types-tqdm"]
# {module of tools/, which become the package sl_detectron.tools: its console script}
SCRIPTS = run_path(str(HERE / "sl_detectron/cli.py"))["CONSOLE_SCRIPTS"]

setup(
    name="sl_detectron",
    version=VERSION,
    description="Train detectron2 detectors on noisy labels with the SuperLoss",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="sl_detectron's authors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    # The shipped configs and the tools become packages of sl_detectron.
    packages=[
        *find_packages(include=["sl_detectron*"]),
        *("sl_detectron.configs", "sl_detectron.tools"),
    ],
    package_dir={"sl_detectron.configs": "configs", "sl_detectron.tools": "tools"},
    entry_points={
        "console_scripts": [f"{v} = sl_detectron.tools.{k}:cli" for k, v in SCRIPTS.items()]
    },
    package_data={
        "sl_detectron.configs": ["**/*.yaml", "LazyConfig/*.py"],
        "sl_detectron.audit": ["page/*"],
        "sl_detectron.visualization": ["page/*"],
        "sl_detectron": ["py.typed"],
    },
    install_requires=[
        "torch>=2.1",
        "fvcore",
        "pycocotools",
        "PyYAML",
        "numpy",
        "Pillow",
        "scipy>=1.10",
        "tabulate",
        "tqdm",
        "filelock>=4.2",
    ],
    extras_require={
        "demo": DEMO,
        "audit": AUDIT,
        "sweep": SWEEP,
        "slurm": SLURM,
        "visualize": VISUALIZE,
        "test": TEST,
        "docs": DOCS,
        "dev": DEV,
    },
)
