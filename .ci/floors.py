"""Print the floors that pyproject.toml declares, as constraints for pip: `av>=16,<19` becomes `av==16`."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in sorted({requirement for group in groups for requirement in group}):
    if floor := re.match(r"([\w.-]+)>=([\w.]+)", requirement):
        sys.stdout.write("==".join(floor.groups()) + "\n")
