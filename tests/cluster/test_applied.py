"""What a run would apply, without any cluster."""

import os

import pytest

from kvab.clusters.kubernetes.api import Kube
from kvab.clusters.kubernetes.objects import Assembly
from kvab.errors import InputError
from kvab.runs.replay import plan_job
from kvab.study import Kubernetes, load_cluster, load_study
from kvab.trace.finding import find_trace

PROFILE = Kubernetes.model_validate(
    {
        "kind": "kubernetes",
        "name": "example-h200",
        "description": "a cluster",
        "namespace": "dynamo-study",
        "storage_class": "shared",
        "rdma_resource": "rdma/ib",
    }
)


@pytest.fixture(scope="module")
def published():
    if not os.environ.get("KVAB_TRACE"):
        pytest.skip("the real trace: run `kvab trace fetch --to FILE` and name it in KVAB_TRACE")
    study = load_study()
    trace = find_trace(study.trace)
    return lambda **given: plan_job(study, "example-h200", "agg-round-robin", trace=trace, **given)


def benchmark(job, profile=PROFILE):
    return Assembly.of(profile, job).manifests("run-1")[2]


def parts(job):
    container = job["spec"]["template"]["spec"]["containers"][0]
    args = container["args"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    return args[args.index("--input-file") + 1], values


def test_the_published_trace_is_fetched_by_the_benchmark_itself(published):
    job = published()
    path, values = parts(benchmark(job))
    assert path == "/perf-cache/traces/conversation_trace.jsonl"
    assert values["TRACE_SHA256"] == job.study.trace.sha256
    assert values["RUN_ID"] == "run-1"
    assert Assembly.of(PROFILE, job).content == b""


def test_another_order_or_part_of_it_is_brought_to_the_volume(published):
    seen = {parts(benchmark(published(**given)))[0] for given in ({"repeat": 2}, {"rows": 300})}
    assert len(seen) == 2
    assert all(path.startswith("/perf-cache/traces/") for path in seen)
    assert "/perf-cache/traces/conversation_trace.jsonl" not in seen


def test_the_deadline_follows_from_the_workload(published):
    whole, part = (benchmark(published(**given)) for given in ({}, {"rows": 300}))
    seconds = [job["spec"]["activeDeadlineSeconds"] for job in (whole, part)]
    # readiness 1800 s, the trace's span, the last request's timeout 1800 s and slack 1800 s
    assert seconds[0] == 5400 + 3537
    assert 5400 < seconds[1] < 5700
    assert whole["spec"]["backoffLimit"] == 0


def test_the_same_run_is_known_again_and_another_is_not(published):
    first, again = (Assembly.of(PROFILE, published()) for _ in range(2))
    other = Assembly.of(PROFILE, published(repeat=2))
    image = PROFILE.model_copy(update={"image": "registry/runtime:1.3.2"})
    assert first == again
    assert other.digest != first.digest
    assert Assembly.of(image, published()).digest != first.digest


def test_network_devices_take_the_clusters_name_or_none(published):
    def custom(resource):
        profile = PROFILE.model_copy(update={"rdma_resource": resource})
        made = Assembly.of(profile, published()).manifests()[0]
        return made["spec"]["services"]["VllmDecodeWorker"]["resources"]["limits"].get("custom")

    assert custom("rdma/shared_a") == {"rdma/shared_a": "2"}
    assert custom(None) is None


def test_the_example_profile_is_refused_until_it_is_filled_in():
    with pytest.raises(InputError, match=r"example-h200\.yaml: storage_class: .* placeholder"):
        Kube(load_cluster("example-h200"))
