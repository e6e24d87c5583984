#!/usr/bin/env bash
# Makes the image of tailwharf: the static binary and the CA certificates of this machine, run as user 65532.
#
#   build.sh [FILE]       writes the archive FILE (build/tailwharf.tar) with the tag tailwharf.test/tailwharf:dev
#
# The same binary and certificates give the same bytes. TAILWHARF_BINARY and TAILWHARF_TAG choose others.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
out=${1:-$top/build/tailwharf.tar}
binary=${TAILWHARF_BINARY:-$top/target/x86_64-unknown-linux-musl/release/tailwharf}
tag=${TAILWHARF_TAG:-tailwharf.test/tailwharf:dev}

[ -x "$binary" ] || {
  echo "build.sh: $binary is missing: cargo build --release --target x86_64-unknown-linux-musl -p tailwharf" >&2
  exit 1
}
if readelf --program-headers "$binary" 2>/dev/null | grep -q INTERP; then
  echo "build.sh: $binary needs a dynamic loader, which the image does not have: build it for a musl target" >&2
  exit 1
fi
mkdir -p "$(dirname "$out")"
"$here/oci-image.py" -o "$out" -t "$tag" --ca-certs --user 65532:65532 \
  --add "$binary:/tailwharf:755" --entrypoint /tailwharf \
  --label org.opencontainers.image.title=tailwharf \
  --label org.opencontainers.image.licenses=Apache-2.0
