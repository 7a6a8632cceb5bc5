"""Where the repository, the tests' data and the model that ships with the repository lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
NANO = ROOT / "examples" / "nano-nb-7m"
