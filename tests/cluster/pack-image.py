#!/usr/bin/env python3
"""Pack a root folder as a one-layer image archive that `ctr images import`, `docker load` and `kind load` understand.

The same folder gives the same bytes: entries are sorted, owned by root and carry no times, so an image that did not
change keeps its digest.
"""
import argparse
import hashlib
import io
import json
import platform
import tarfile


def layer_of(rootfs: str) -> bytes:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = "root"
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(rootfs, arcname=".", filter=plain)  # adds a folder's entries in sorted order
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--user", default="", help="uid or uid:gid to run as (default: root)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("name", metavar="NAME:TAG")
    parser.add_argument("rootfs")
    parser.add_argument("out", metavar="OUT.tar")
    parser.add_argument("entrypoint", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    layer = layer_of(args.rootfs)
    layer_digest = hashlib.sha256(layer).hexdigest()
    machine = platform.machine()
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        "os": "linux",
        "config": {
            "Entrypoint": args.entrypoint,
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", *args.env],
            "User": args.user,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + layer_digest]},
    }).encode()
    config_digest = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{
        "Config": config_digest + ".json", "RepoTags": [args.name], "Layers": [layer_digest + ".tar"],
    }]).encode()
    files = (config_digest + ".json", config), (layer_digest + ".tar", layer), ("manifest.json", manifest)
    with tarfile.open(args.out, "w") as archive:
        for path, content in files:
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


main()
