"""What is fuzzed: how an input becomes files of a reader, and what must hold if it is accepted.

An input is the content of one or two files. It is accepted with the invariants below, or refused
with an `InputError` of one line.
"""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from kvab.book import publish as bundle
from kvab.clusters.kubernetes import objects
from kvab.requests import aiperf
from kvab.requests.matching import from_aiperf
from kvab.requests.metrics import summarize
from kvab.requests.table import PANDAS_TYPES, check_table
from kvab.runs import folder as runs
from kvab.study import Slo, load_cluster, load_study, root
from kvab.study.manifests import BENCHMARK_ENV, read_configuration
from kvab.study.topology import flatten, read_topology
from kvab.trace.reading import read_trace
from kvab.trace.synthesize import synthesize

BETWEEN = b"\n=====\n"  # of the two files of an input
SLO = Slo(ttft_ms=2000, itl_ms=25)
RECIPES = root() / "recipes" / "qwen3-32b" / "vllm"
PUBLISHED = root() / "book" / "published" / "qwen3-32b"


class Reader:
    """A reader, with the folder that its inputs are written to."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def sampled(data, one_in=8):
    """Whether an input is one of the few on which what is slow is checked too."""
    return zlib.crc32(data) % one_in == 0


def parts(data):
    """Return the two files of an input; the second is empty where nothing divides them."""
    first, _, second = data.partition(BETWEEN)
    return first, second


class TraceReader(Reader):
    """`read_trace`: arrivals never fall, tokens are positive, each prompt has its blocks."""

    def seeds(self):
        yield as_lines(synthesize(5))
        rows = [{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [0, 1]},
                {"timestamp": 0, "input_length": 512, "output_length": 9, "hash_ids": [0]},
                {"timestamp": 27.5, "input_length": 1, "output_length": 2, "hash_ids": [3],
                 "synthetic": True}]  # fmt: skip
        yield as_lines(rows)

    def read(self, data):
        path = self.write("trace.jsonl", data)
        trace = read_trace(path)
        assert len(trace) >= 1 and trace.sha256 == hashlib.sha256(data).hexdigest()
        assert trace.arrival_ms[0] == 0 and (np.diff(trace.arrival_ms) >= 0).all()
        assert np.isfinite(trace.timestamp_ms).all()
        assert (trace.input_tokens >= 1).all() and (trace.output_tokens >= 1).all()
        blocks = np.array([len(ids) for ids in trace.hash_ids])
        assert (blocks == -(-trace.input_tokens.astype("int64") // trace.block_tokens)).all()
        again = read_trace(path)
        assert again.hash_ids == trace.hash_ids
        assert (again.timestamp_ms == trace.timestamp_ms).all()


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class AiperfReader(Reader):
    """`read_artifacts` and `from_aiperf`: a row a request, served ones with sound times."""

    def seeds(self):
        for version in ("0.6.0", "0.9.0", "0.13.0"):
            place = root() / "tests" / "data" / "aiperf" / version
            lines = gzip.decompress((place / "profile_export.jsonl.gz").read_bytes()).splitlines()
            records = [short(json.loads(line)) for line in lines[:3]]
            summary = json.loads((place / "profile_export_aiperf.json").read_bytes())
            summary = {key: value for key, value in summary.items()
                       if key in ("request_count", "input_config", "aiperf_version",
                                  "was_cancelled", "request_latency")}  # fmt: skip
            summary["request_count"] = {"unit": "requests", "avg": 3.0}
            summary["input_config"] = {"phases": [{"name": "profiling", "requests": 60}]}
            yield as_lines(records) + BETWEEN + json.dumps(summary).encode()
            yield as_lines(records)

    def read(self, data):
        records, summary = parts(data)
        self.write("profile_export.jsonl", records)
        (self.folder / "profile_export_aiperf.json").unlink(missing_ok=True)
        if summary:
            self.write("profile_export_aiperf.json", summary)
        found = aiperf.read_artifacts(self.folder)
        json.dumps(aiperf.summary_document(found, SLO), allow_nan=False)
        assert aiperf.not_in_summary(found, SLO)
        if not sampled(data, one_in=16):
            return
        table = from_aiperf(found)
        assert table["row"].tolist() == list(range(len(table)))
        assert (table[["input_tokens", "output_tokens", "requested_output_tokens"]] >= 0).all(None)
        assert (table["cached_tokens"].dropna() >= 0).all()
        served = table[table["error"].isna()]
        assert (np.isfinite(served["latency_ms"]) & (served["latency_ms"] >= 0)).all()
        assert (served["output_tokens"] >= 1).all()
        assert not (served["ttft_ms"] > served["latency_ms"]).any()
        check_table(table[list(PANDAS_TYPES)], "a table")
        json.dumps(summarize(table, SLO), allow_nan=False)
        again = from_aiperf(aiperf.read_artifacts(self.folder))
        pd.testing.assert_frame_equal(again, table)


def short(record):
    """Return a record without the long lists that are passed over."""
    kept = {key: value for key, value in record["metrics"].items()
            if not isinstance(value.get("value"), list)}  # fmt: skip
    return {**record, "metrics": kept}


class ManifestReader(Reader):
    """`read_configuration`, `topology`: positive counts, every field a text, equal when reread."""

    def seeds(self):
        for name in ("agg-kv-router", "disagg-kv-router"):
            deploy, job = (yaml.safe_load((RECIPES / name / file).read_text())
                           for file in MANIFESTS)  # fmt: skip
            pod = job["spec"]["template"]["spec"]
            container = pod["containers"][0]
            args = container["args"]
            args[2:] = [each for at, each in enumerate(args) if {each, args[at - 1]} & OPTIONS]
            container["env"] = [each for each in container["env"] if each["name"] in BENCHMARK_ENV]
            pod["volumes"] = pod["volumes"][-1:]
            yield dumped(deploy, DEPLOYED) + BETWEEN + dumped(job, REPLAYED)

    def read(self, data):
        for name, content in zip(MANIFESTS, parts(data), strict=True):
            self.write(f"recipe/{name}", content)
        found = read_configuration(self.folder / "recipe")
        topology = read_topology(found)
        assert topology.gpus >= 1 and topology.describe()
        assert {*topology.groups} in ({"aggregated"}, {"prefill", "decode"})
        assert all(group.replicas >= 1 for group in topology.groups.values())
        flat = flatten(found)
        assert all(isinstance(each, str) for pair in flat.items() for each in pair)
        assert found.benchmark.command[:2] == ["aiperf", "profile"]
        run = objects.Assembly(PROFILE, STUDY, found, "a/run", 64 * "0", 4, 1.0, b"{}")
        assert objects.needs(run.deployment)["nvidia.com/gpu"] >= 1
        assert objects.files_pod(run.job("a-run"), "files")["spec"]["volumes"]
        assert run.folder("a-run")
        if not sampled(data):
            return
        again = read_configuration(self.folder / "recipe")
        assert (again.digest, again.benchmark.digest) == (found.digest, found.benchmark.digest)


MANIFESTS = ("deploy.yaml", "perf.yaml")


DEPLOYED = set(
    "apiVersion kind metadata name spec services componentType replicas resources limits gpu "
    "custom requests envs tolerations nodeSelector envFromSecret "
    "extraPodSpec mainContainer image command args".split()
)
OPTIONS = {"-m", "--url", "--goodput", "--input-file", "--artifact-dir",
           "--request-timeout-seconds"}  # fmt: skip
REPLAYED = set(
    "kind metadata name spec template containers image args env value volumes "
    "persistentVolumeClaim claimName".split()
)
PROFILE = load_cluster("example-h200").model_copy(update={
    "tolerations": [{"operator": "Exists"}], "node_selector": {"a": "b"},
    "rdma_resource": "rdma/all", "image_pull_secret": "pull"})  # fmt: skip
STUDY = load_study()


def dumped(manifest, kept):
    """Return a manifest with only what is read of it: an input is parsed in Python, slowly."""

    def less(value, free=False):
        if isinstance(value, list):
            return [less(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {key: less(each, key == "services") for key, each in value.items()
                if free or key in kept}  # fmt: skip

    return yaml.safe_dump(less(manifest), sort_keys=False).encode()


class RunReader(Reader):
    """`read_run`: as many rows as run.json says, each once, of the types of the schema."""

    def seeds(self):
        for cluster, arm in (("live-cpu", "disagg-kv-router"), ("simulated-h200", "agg-kv-router")):
            run = runs.read_run(PUBLISHED / cluster / arm / "r1")
            told = json.loads((run.path / "run.json").read_bytes())
            told |= {"files": {"requests.parquet": SUM.decode()},
                     "counts": {"expected": 4, "received": 4, "errors": 0}}  # fmt: skip
            table = runs.requests_bytes(run.requests.iloc[:4])
            yield json.dumps(told, indent=1).encode() + BETWEEN + table

    def read(self, data):
        manifest, table = parts(data)
        digest = hashlib.sha256(table).hexdigest().encode()
        self.write("run/run.json", manifest.replace(SUM, digest))
        self.write("run/requests.parquet", table)
        run = runs.read_run(self.folder / "run")
        assert len(run.requests) == run.manifest.counts.expected >= 1
        assert run.requests["row"].is_unique
        types = {name: str(kind) for name, kind in run.requests.dtypes.items()}
        assert types == PANDAS_TYPES
        assert all((run.path / name).resolve().is_relative_to(run.path.resolve())
                   for name in run.manifest.files)  # fmt: skip
        if sampled(data):
            written = runs.requests_bytes(run.requests)
            assert runs.requests_bytes(runs.read_run(run.path).requests) == written


SUM = b"@sha256@"  # stands for the right sum, so that what it guards is reached


class BundleReader(Reader):
    """`unpacked`: every file listed and whole, inside the folder; a study, and runs of clusters.

    An input is either an archive as it is, or members as lines of names and contents, which are
    packed with right checksums.
    """

    def seeds(self):
        files = {
            "recipes/s/study.yaml": b"name: s\n",
            "runs/s/c/a/r1/run.json": b"{}",
            "runs/s/workloads/0.json": b"{}",
        }
        told = {"schema": 1, "study": "recipes/s/study.yaml", "clusters": ["c"], "kvab": "0.1.0",
                "files": dict.fromkeys(files, SUM.decode())}  # fmt: skip
        members = {bundle.CONTENTS: json.dumps(told, indent=1).encode(), **files}
        yield BETWEEN.join(name.encode() + b"\n" + text for name, text in members.items())
        yield ARCHIVE + packed(members)
        yield ZST + pa.Codec("zstd").compress(packed(members), asbytes=True)

    def read(self, data):
        if data.startswith(ARCHIVE):
            path = self.write("b.tar", data.removeprefix(ARCHIVE))
        elif data.startswith(ZST):
            path = self.write("b.tar.zst", data.removeprefix(ZST))
        else:
            pairs = [member.partition(b"\n") for member in data.split(BETWEEN)]
            members = {name.decode("latin-1"): text for name, _, text in pairs}
            path = self.write("b.tar", packed(members))
        with bundle.unpacked(path) as (folder, contents):
            assert (folder / contents.study).is_file() and contents.clusters
            for name, expected in contents.files.items():
                place = (folder / name).resolve()
                assert place.is_relative_to(folder.resolve())
                assert hashlib.sha256(place.read_bytes()).hexdigest() == expected
            for cluster in contents.clusters:
                assert [*(folder / "runs").glob(f"*/{cluster}/*/r*/run.json")]


ARCHIVE, ZST = b"archive:", b"zst:"


def packed(members):
    """Return members as an archive; a sum left open in the contents becomes the right one."""
    if text := members.get(bundle.CONTENTS):
        for name, content in members.items():
            digest = hashlib.sha256(content).hexdigest().encode()
            line = f'"{name}": "'.encode()
            text = text.replace(line + SUM, line + digest)
        members = {**members, bundle.CONTENTS: text}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


READERS = {
    "trace": TraceReader,
    "aiperf": AiperfReader,
    "manifests": ManifestReader,
    "runs": RunReader,
    "bundle": BundleReader,
}
