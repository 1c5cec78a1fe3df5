#!/usr/bin/env python3
"""Writes the image as a docker archive, which `ctr images import`, `podman load` and `docker load` take.

    mkimage.py OUT.tar TAG PROGRAM...

One layer with the programs in /usr/bin, as in the Containerfile; the last program is the entry point. The same input
makes the same bytes.
"""
import hashlib
import io
import json
import os
import platform
import sys
import tarfile


def entry(name, data, mode=0o644):
    """A file of root, of no particular time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    return info, io.BytesIO(data)


def archive(entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, data)
    return buffer.getvalue()


def folder(name):
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info, None


def layer(programs):
    entries = [folder("usr"), folder("usr/bin")]
    for path in programs:
        with open(path, "rb") as file:
            entries.append(entry("usr/bin/" + os.path.basename(path), file.read(), 0o755))
    return archive(entries)


def main(out, tag, *programs):
    data = layer(programs)
    digest = hashlib.sha256(data).hexdigest()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/" + os.path.basename(programs[-1])],
            "Env": ["PATH=/usr/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    path = digest + "/layer.tar"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": [path]}]).encode()
    # Whole or not at all.
    new = out + ".new"
    with open(new, "wb") as file:
        file.write(archive([entry(name, config), folder(digest), entry(path, data), entry("manifest.json", manifest)]))
    os.rename(new, out)
    print(f"{out}: {tag}, {len(data)} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
