#!/usr/bin/env bash
# Builds the official peers that tests judge compatibility by, from the Go module: tailscaled, tailscale, containerboot, derper, k8s-operator.
#
#   peers.sh              into the user's cache, by version; what is there is not built again
set -euo pipefail
VERSION=1.102.5
bin=${XDG_CACHE_HOME:-$HOME/.cache}/tailwharf/peers/$VERSION/bin
mkdir -p "$bin"
for program in tailscale tailscaled containerboot derper k8s-operator; do
  if [ -x "$bin/$program" ]; then continue; fi
  echo "setup: building the official $program $VERSION"
  GOBIN=$bin CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=mod go install \
    -ldflags "-s -w -X tailscale.com/version.shortStamp=$VERSION -X tailscale.com/version.longStamp=$VERSION" \
    "tailscale.com/cmd/$program@v$VERSION"
done
crds=$bin/../crds
if [ ! -d "$crds" ]; then
  cp -r --no-preserve=mode "$(go env GOMODCACHE)/tailscale.com@v$VERSION/cmd/k8s-operator/deploy/crds" "$crds"
fi
