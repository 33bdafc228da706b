"""The drawings of what is deployed follow deploy.yaml."""

from types import SimpleNamespace

from kvab.pages.index import architectures_figure
from kvab.study import load_study
from kvab.study.manifests import DEPLOY, read_configuration
from kvab.study.topology import read_topology

STUDY = load_study("recipes/qwen3-32b/study.yaml")


def drawn(tmp_path, replaced):
    """The panel of the study whose comparison has this text of its deploy.yaml replaced."""
    topologies = {}
    for name in (STUDY.baseline, STUDY.comparison):
        source, folder = STUDY.configuration_folder(name), tmp_path / name
        folder.mkdir(parents=True)
        for path in source.glob("*.yaml"):
            text = path.read_text()
            if (name, path.name) == (STUDY.comparison, DEPLOY):
                for old, new in replaced.items():
                    assert text.count(old) == 1
                    text = text.replace(old, new)
            (folder / path.name).write_text(text)
        topologies[name] = read_topology(read_configuration(folder, name))
    evidence = SimpleNamespace(study=STUDY, arms=STUDY.configurations, topologies=topologies,
                               simulated=True, synthetic=False)  # fmt: skip
    return architectures_figure(evidence)


def squares(panel):
    """The outlines of GPUs in the drawing: what is not filled, and is not a frontend."""
    return panel.svg.count("fill: none; stroke: var(--kvab-ink") - 2


def test_each_gpu_is_a_square_and_the_caption_counts_the_workers(tmp_path):
    panel = drawn(tmp_path, {})
    assert squares(panel) == 32
    assert panel.caption.startswith(
        "Both fill the same 16 GPUs: the baseline with 8 aggregated workers, the comparison with "
        "6 prefill workers and 2 decode workers."
    )
    for drawing in (panel.svg, panel.phone):
        for text in ("frontend, round-robin", "frontend, KV router", "KV transfer",
                     "8 aggregated workers of 2 GPUs", "6 prefill workers of 2 GPUs"):  # fmt: skip
            assert f">{text}<" in drawing


def test_another_number_of_replicas_or_another_router_is_another_drawing(tmp_path):
    fewer = drawn(tmp_path / "fewer", {"replicas: 6": "replicas: 4"})
    assert squares(fewer) == 28
    assert fewer.caption.startswith("Both fill unequal hardware: ")
    assert ">4 prefill workers of 2 GPUs<" in fewer.svg
    assert "\ndisagg-kv-router,,4,2\n" in fewer.csv.decode()
    other = drawn(tmp_path / "other", {"- kv\n": "- round-robin\n"})
    assert other.svg.count(">frontend, round-robin<") == 2
