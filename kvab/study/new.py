"""A new study begun from one that works.

Input: a study, a cluster profile and a name. Output: a folder under ``recipes/`` that is a study of
that name, and a profile for it under ``recipes/clusters/``.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from kvab.errors import InputError
from kvab.study import load_cluster, load_study, root

NAME = "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"  # it becomes part of Kubernetes labels
NEXT = """\
{study}
  title, model, gpus, workloads, slo, configurations, seeds, margins: say what you ask, and of what;
  gpus.differ: true where configurations are meant to fill different numbers of GPUs
{folder}/*/*/deploy.yaml
  the topology of each configuration: model, replicas, GPUs, router
{folder}/*/*/perf.yaml
  the AIPerf command: the same model, and --goodput as in slo
{folder}/model-cache/
  which model files a Kubernetes cluster fetches once
{profile}
  where it is replayed: name and description; hardware, the simulator's measured data of the chip
  that gpus.product names, and backend
kvab doctor --study {study} --cluster {cluster}
  says what does not fit together yet, and what the simulator has no data of
kvab report --study {study} --cluster {cluster}
  replays everything and builds its book"""


def new_study(name: str, like: Path, cluster: str = "simulated-h200") -> str:
    """Copy a study's declaration, manifests and a profile to new names; return what to change next.

    Raises
    ------
    InputError
        If the name cannot be a study's, or ``recipes/`` has something of the new names.
    """
    if not re.match(NAME, name):
        expected = "a name of lower-case letters, digits and dashes, 40 at most, such as my-study"
        raise InputError(expected=expected, path=name)
    source = load_study(like)
    target, like_profile = root() / "recipes" / name, load_cluster(cluster)
    profile = target.parent / "clusters" / f"{like_profile.kind}-{name}.yaml"
    for path in (target, profile):
        if path.exists():
            raise InputError("exists already", path=path, fix="choose another name")
    old = re.escape(source.name)
    own = re.compile(rf"(?<![\w/-]){old}(?![\w-])|(?<=/){old}(?=/)")
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as beside:
        copy = shutil.copytree(source.folder, Path(beside) / name)
        for path in copy.rglob("*.yaml"):
            text = own.sub(name, path.read_text(encoding="utf-8"))
            if path.name == "study.yaml":
                text = re.sub(r"(?m)^version: \d+$", "version: 1", text)
                text = re.sub(r"(?m)(^#.*\n)?^source:\n(  .*\n)+", "", text)  # the question is new
            path.write_text(text, encoding="utf-8")
        load_study(copy / "study.yaml")
        text = profile.with_stem(cluster).read_text(encoding="utf-8")
        text = re.sub("(?m)^name: .*", f"name: {profile.stem}", text)
        profile.write_text(text, encoding="utf-8")
        copy.rename(target)
    folder = target.relative_to(root())
    return NEXT.format(
        folder=folder,
        study=folder / "study.yaml",
        profile=profile.relative_to(root()),
        cluster=profile.stem,
    )
