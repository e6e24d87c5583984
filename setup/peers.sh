#!/usr/bin/env bash
# Builds the peers that tests judge compatibility by, from their Go modules: tailscaled, tailscale, containerboot, derper, k8s-operator; and pebble, the ACME
# server by which Let's Encrypt lets clients be tested.
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
PEBBLE=2.10.3
pebble=${XDG_CACHE_HOME:-$HOME/.cache}/tailwharf/peers/pebble-$PEBBLE/bin
if [ ! -x "$pebble/pebble" ]; then
  echo "setup: building pebble $PEBBLE"
  GOBIN=$pebble CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=mod go install -ldflags "-s -w" "github.com/letsencrypt/pebble/v2/cmd/pebble@v$PEBBLE"
fi
crds=$bin/../crds
if [ ! -d "$crds" ]; then
  cp -r --no-preserve=mode "$(go env GOMODCACHE)/tailscale.com@v$VERSION/cmd/k8s-operator/deploy/crds" "$crds"
fi

HELM_VERSION=3.22.0
helm=${XDG_CACHE_HOME:-$HOME/.cache}/tailwharf/peers/helm-$HELM_VERSION
if [ ! -x "$helm/helm" ]; then
  echo "setup: building Helm $HELM_VERSION"
  GOBIN=$helm CGO_ENABLED=0 GOWORK=off go install -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@v$HELM_VERSION"
fi
