"""Write docs/licences.md: every package of the environment with its licence."""

import json
import subprocess
import sys
from pathlib import Path

HEAD = """# Licences of all dependencies

What `requirements.lock` installs on Linux, by `make licences`; a test compares the names.

| package | version | licence |
|---|---|---|
"""
TARGET = Path(__file__).parents[1] / "docs" / "licences.md"
SILENT = {"atheris": "Apache-2.0", "axe-playwright-python": "MIT"}  # say so in their LICENSE


def _licence(package: dict[str, str]) -> str:
    return SILENT.get(package["Name"]) or package["License"].strip().splitlines()[0]


def main() -> None:
    """Ask pip-licenses, keep the first line of licences that give their whole text."""
    command = [Path(sys.executable).with_name("pip-licenses"), "--from=mixed", "--with-system",
               "--format=json"]  # fmt: skip
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = [
        f"| {each['Name']} | {each['Version']} | {_licence(each)} |"
        for each in sorted(told, key=lambda each: each["Name"].lower())
        if each["Name"] not in ("kvab", "uv")
    ]
    TARGET.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TARGET}: {len(lines)} packages")


if __name__ == "__main__":
    main()
