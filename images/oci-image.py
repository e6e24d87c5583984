#!/usr/bin/env python3
"""Make an importable image archive from a static binary and a few files.

The archive is an OCI image layout and, at the same time, a docker archive:
`ctr images import`, `docker load`, `podman load` and `kind load` all take it.
The result is reproducible: the same inputs give the same bytes.

    oci-image.py -o app.tar -t tailwharf.test/app:dev --ca-certs --user 65532 \\
        --add target/release/app:/app --entrypoint /app --cmd --verbose

The tag must name a registry host (its first part holds a dot), so that the
name in the pod spec and the name in the image store are always the same.
"""
import argparse, gzip, hashlib, io, json, os, platform, stat, sys, tarfile

CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def entry(name, mode, typ=tarfile.REGTYPE, size=0, link="", uid=0, gid=0):
    t = tarfile.TarInfo(name.strip("/"))
    t.mode, t.type, t.size, t.linkname, t.uid, t.gid, t.mtime = mode, typ, size, link, uid, gid, 0
    return t


class Layer:
    """A file system tree, kept by path so that parents come first."""

    def __init__(self):
        self.items = {}

    def put(self, path, info, data=b""):
        parent = os.path.dirname(path.rstrip("/"))
        if parent not in ("", "/") and parent not in self.items:
            self.put(parent, entry(parent, 0o755, tarfile.DIRTYPE))
        self.items[path.rstrip("/")] = (info, data)

    def file(self, path, data, mode):
        self.put(path, entry(path, mode, size=len(data)), data)

    def tar(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as t:
            for path in sorted(self.items):
                info, data = self.items[path]
                t.addfile(info, io.BytesIO(data))
        return out.getvalue()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-o", "--output", required=True)
    p.add_argument("-t", "--tag", action="append", required=True, help="may be given several times")
    p.add_argument("--add", action="append", default=[], metavar="SRC:DEST[:MODE]",
                   help="file or directory; the mode is that of SRC unless given (octal)")
    p.add_argument("--link", action="append", default=[], metavar="PATH=TARGET", help="symbolic link")
    p.add_argument("--dir", action="append", default=[], metavar="PATH[:MODE[:UID]]")
    p.add_argument("--ca-certs", action="store_true", help="this machine's CA bundle")
    p.add_argument("--user", default="0", metavar="UID[:GID]", help="numeric, so that runAsNonRoot can be checked")
    p.add_argument("--workdir", default="/")
    p.add_argument("--env", action="append", default=[], metavar="K=V")
    p.add_argument("--label", action="append", default=[], metavar="K=V")
    p.add_argument("--port", action="append", default=[], metavar="8080/tcp")
    p.add_argument("--entrypoint", required=True, help="a path, or a JSON list")
    p.add_argument("--cmd", nargs=argparse.REMAINDER, default=[], help="must come last")
    a = p.parse_args()

    for tag in a.tag:
        host, _, rest = tag.partition("/")
        if "." not in host or ":" not in rest:
            sys.exit(f"oci-image: {tag!r}: want HOST.DOMAIN/NAME:TAG")

    layer = Layer()
    uid, _, gid = a.user.partition(":")
    users = {"0": ("root", "0")} | ({uid: ("app", gid or uid)} if uid != "0" else {})
    layer.file("/etc/passwd", "".join(f"{n}:x:{u}:{g}:{n}:/:/sbin/nologin\n" for u, (n, g) in users.items()).encode(), 0o644)
    layer.file("/etc/group", "".join(f"{n}:x:{g}:\n" for n, g in users.values()).encode(), 0o644)
    layer.put("/tmp", entry("/tmp", 0o1777, tarfile.DIRTYPE))
    if a.ca_certs:
        bundle = next((b for b in CA_BUNDLES if os.path.exists(b)), None) or sys.exit("oci-image: no CA bundle here")
        layer.file(CA_BUNDLES[0], open(bundle, "rb").read(), 0o644)
    for d in a.dir:
        path, mode, owner = (d.split(":") + ["", ""])[:3]
        layer.put(path, entry(path, int(mode or "755", 8), tarfile.DIRTYPE, uid=int(owner or 0)))
    for spec in a.add:
        src, dest, mode = (spec.split(":") + ["", ""])[:3]
        if not dest:
            sys.exit(f"oci-image: --add {spec}: want SRC:DEST")
        walk = [src] if not os.path.isdir(src) else \
            sorted(os.path.join(d, f) for d, _, fs in os.walk(src) for f in fs)
        for f in walk:
            to = dest if f == src else os.path.join(dest, os.path.relpath(f, src))
            with open(f, "rb") as fh:
                layer.file(to, fh.read(), int(mode, 8) if mode else stat.S_IMODE(os.stat(f).st_mode) & 0o755)
    for link in a.link:
        path, _, target = link.partition("=")
        layer.put(path, entry(path, 0o777, tarfile.SYMTYPE, link=target))

    blobs = {}

    def blob(data, media):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media, "digest": "sha256:" + digest, "size": len(data)}

    def js(obj):
        return json.dumps(obj, sort_keys=True).encode()

    def pairs(items):
        return dict(i.split("=", 1) for i in items)

    raw = layer.tar()
    layer_desc = blob(gzip.compress(raw, 6, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"} | pairs(a.env)
    config = {
        "Entrypoint": json.loads(a.entrypoint) if a.entrypoint.startswith("[") else [a.entrypoint],
        "Cmd": a.cmd or None,
        "User": "" if a.user == "0" else a.user, "WorkingDir": a.workdir,
        "Env": [f"{k}={v}" for k, v in env.items()],
        "Labels": pairs(a.label) or None,
        "ExposedPorts": {p: {} for p in a.port} or None,
    }
    config_desc = blob(js({
        "architecture": ARCH, "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {k: v for k, v in config.items() if v is not None},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest()]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "oci-image.py"}],
    }), "application/vnd.oci.image.config.v1+json")
    manifest_desc = blob(js({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_desc, "layers": [layer_desc],
    }), "application/vnd.oci.image.manifest.v1+json")
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        manifest_desc | {"platform": {"architecture": ARCH, "os": "linux"}, "annotations": {
            "io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag.rpartition(":")[2]}}
        for tag in a.tag]}
    at = lambda d: "blobs/sha256/" + d["digest"].removeprefix("sha256:")
    docker = [{"Config": at(config_desc), "RepoTags": a.tag, "Layers": [at(layer_desc)]}]

    files = {"oci-layout": js({"imageLayoutVersion": "1.0.0"}), "index.json": js(index), "manifest.json": js(docker)}
    files |= {"blobs/sha256/" + d: data for d, data in blobs.items()}
    tmp = a.output + ".part"
    with tarfile.open(tmp, "w", format=tarfile.GNU_FORMAT) as t:
        for name in sorted(files):
            t.addfile(entry(name, 0o644, size=len(files[name])), io.BytesIO(files[name]))
    os.replace(tmp, a.output)
    print(f"{a.output}: {', '.join(a.tag)} ({os.path.getsize(a.output) >> 10} KiB)")


if __name__ == "__main__":
    main()
