"""What several test modules build on; no test module imports another."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
