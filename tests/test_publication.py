"""What a reader elsewhere relies on: citation, environment, workflows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_citation_is_whole_and_of_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= told.keys()  # what CFF 1.2.0 requires
    assert told["cff-version"] == "1.2.0" and told["type"] in ("software", "dataset")
    assert all(author.keys() & {"name", "family-names"} for author in told["authors"])
    assert told["version"] == PROJECT["version"]
    assert told["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_what_they_use_and_ask_for_little(path):
    told = yaml.safe_load(path.read_text())
    assert told["permissions"] in ({}, {"contents": "read"})
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used
    for action in used:
        assert re.search(r"@[0-9a-f]{40}$", action), action
    runs = [step["run"] for job in told["jobs"].values() for step in job["steps"] if "run" in step]
    targets = (ROOT / "Makefile").read_text()
    for command in runs:
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.M), command
        elif words[0] == "kind":  # on the runner's image
            assert words[1:3] == ["create", "cluster"], command
        else:
            assert (ROOT / words[1]).is_file(), command


def test_the_environment_file_installs_the_lock_file(tmp_path):
    """pip takes the file's pip section as conda and repo2docker hand it on."""
    told = yaml.safe_load((ROOT / "environment.yml").read_text())
    (lines,) = (each["pip"] for each in told["dependencies"] if isinstance(each, dict))
    assert f"python={sys.version_info[0]}.12" in told["dependencies"]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet",
               "--no-index", "-r", str(tmp_path / "requirements.txt")]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_locked_package_is_listed_with_its_licence():
    lock = (ROOT / "requirements.lock").read_text()
    everywhere = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+) \\$", lock, re.M)
    rows = (ROOT / "docs" / "licences.md").read_text().splitlines()
    listed = [line.strip("| ").split(" | ") for line in rows if line.startswith("| ")][1:]
    versions = {re.sub("[-_.]+", "-", name).lower(): version for name, version, *_ in listed}
    wrong = {
        name: version
        for name, version in everywhere
        if versions.get(re.sub("[-_.]+", "-", name).lower()) != version
    }
    assert len(everywhere) > 200 and wrong == {}
    assert [row for row in listed if len(row) != 3 or row[2] in ("", "UNKNOWN")] == []


def test_every_package_is_locked_with_its_hashes():
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "--require-hashes" in (ROOT / "Makefile").read_text()
