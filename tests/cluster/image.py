#!/usr/bin/env python3
"""image.py OUT.tar TAG[,TAG...] ENTRYPOINT ROOT [ARGUMENTS]

Writes a docker-archive with the directory ROOT as its one layer, owned by root.
ENTRYPOINT and ARGUMENTS are JSON lists. `ctr images import` reads it.
"""
import hashlib
import io
import json
import sys
import tarfile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"


def as_root(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def layer_of(root):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        layer.add(root, arcname=".", filter=as_root)
    return content.getvalue()


def main(out, tags, entrypoint, root, arguments="null"):
    layer = layer_of(root)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": json.loads(entrypoint),
            "Cmd": json.loads(arguments),
            "Env": ["PATH=" + PATH],
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
    }).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    layer_name = digest + "/layer.tar"
    manifest = json.dumps([
        {"Config": config_name, "RepoTags": tags.split(","), "Layers": [layer_name]},
    ]).encode()
    files = ((config_name, config), (layer_name, layer), ("manifest.json", manifest))
    with tarfile.open(out, "w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


main(*sys.argv[1:])
