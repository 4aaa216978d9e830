"""The process that embeds is killed in the middle of a slide: the next run computes what is
missing, the same to the byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.slides.opening import open_slide
from tests.support.process_tree import alive, descendants, kill
from training.encoder.architecture import EncoderConfig
from training.encoder.embed import embed_shards
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.vit import ViTConfig

ROOT = Path(__file__).parents[2]
SPEC = PatchSpec(size=32, mpp=2.0)
CONFIG = EncoderConfig(network=ViTConfig(size=32, dim=32, depth=1, heads=2), spec=SPEC)
SOME = 3
"""Shards of the slide after which its driver is killed."""
PATIENCE_S = 120.0

DRIVER = """
import sys, time
import pyarrow.parquet as pq
import ray
from training.encoder import embed

def at_leisure(fetched, encoder, root, embed_fetched=embed.embed_fetched):
    time.sleep(0.1)  # so that the kill meets a slide half done
    embed_fetched(fetched, encoder, root)

class Worker(embed._EmbedWorker):
    def __call__(self, fetched):
        embed.embed_fetched = at_leisure
        return super().__call__(fetched)

table, encoder, root, slowly = sys.argv[1:]
if slowly == "slowly":
    embed._EmbedWorker = Worker
store = {"object_store_memory": 256 * 2**20}
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, **store)
print("embedded", embed.embed_on_ray(pq.read_table(table), encoder, root).shards)
"""


def _start(*arguments: str, said: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with said.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def _end(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait until the workers have ended by themselves; Ray's agents, which take a
    minute to notice, are ended.
    """
    below = descendants(driver.pid)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + PATIENCE_S
    while left := {
        process: title for process, title in alive(below).items() if "Agent" not in title
    }:
        assert time.monotonic() < deadline, f"a killed driver leaves processes behind: {left}"
        time.sleep(0.1)
    for process in alive(below):
        kill(process)


def _store(root: str) -> dict[str, bytes]:
    return {
        uri.removeprefix(storage.as_uri(root)): storage.read_bytes(uri)
        for uri in storage.list_uris(root)
    }


def test_a_killed_driver_embeds_what_is_missing(generated_slide: Path, tmp_path: Path) -> None:
    with open_slide(str(generated_slide)) as slide:
        shards: pa.Table = index_slide(slide, SPEC, organisation="hospital", shard_side=2).shards
    table, encoder, root, alone, said = (
        str(tmp_path / name) for name in ("shards", "encoder", "store", "alone", "said")
    )
    pq.write_table(shards, table)
    save_encoder(encoder, random_encoder(CONFIG, precision="f32"))
    embed_shards(shards, load_encoder(encoder), alone)
    undisturbed = _store(alone)
    assert len(undisturbed) == len(shards)

    victim = _start(table, encoder, root, "slowly", said=Path(said))
    try:
        while len(storage.list_uris(root)) < SOME:
            assert victim.poll() is None, Path(said).read_text()
            time.sleep(0.01)
    finally:
        _end(victim)
    half = _store(root)
    missing = len(shards) - len(half)
    assert half.items() <= undisturbed.items(), "an object is cut off or another"
    assert missing, "the run ended before it was killed"

    again = _start(table, encoder, root, "", said=Path(said))
    try:
        assert again.wait(timeout=PATIENCE_S) == 0, Path(said).read_text()
    finally:
        _end(again)
    assert f"embedded {missing}\n" in Path(said).read_text()
    assert _store(root) == undisturbed
    print(
        f"driver killed at {len(half)} of {len(shards)} shards of a slide, {missing} embedded by "
        "the next run"
    )
