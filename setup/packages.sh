#!/usr/bin/env bash
# Installs what build, demo and tests need of Debian or Ubuntu, and says what and why. Does nothing where all is there.
#
#   packages.sh           needs root only when something is missing
set -euo pipefail

# command or file : package : what for
needs=(
  "musl-gcc:musl-tools:C parts of the static binary"
  "cc:build-essential:C parts of debug builds"
  "python3:python3:image archives"
  "curl:curl:requests of demo and tests"
  "openssl:openssl:certificates of test clusters"
  "ip:iproute2:network namespaces"
  "nft:nftables:kube-proxy in test clusters"
  "iptables:iptables:pod networks of test clusters"
  "conntrack:conntrack:kube-proxy in test clusters"
  "etcd:etcd-server:store of test clusters"
  "containerd:containerd:pods of test clusters"
  "runc:runc:pods of test clusters"
  "/usr/lib/cni/bridge:containernetworking-plugins:pod networks of test clusters"
  "nsenter:util-linux:test clusters"
  "ping:iputils-ping:reachability in tests"
  "sysctl:procps:forwarding between namespaces of tests"
  "flock:util-linux:test clusters"
  "/etc/ssl/certs/ca-certificates.crt:ca-certificates:root certificates of the image"
  "/usr/sbin/nginx:nginx-light:the nginx that the demo exposes"
  "haproxy:haproxy:peer of the bench"
)
PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
  IFS=: read -r thing package why <<<"$need"
  command -v "$thing" >/dev/null 2>&1 || [ -e "$thing" ] || { echo "setup: $package is missing ($why)"; missing+=("$package"); }
done
for tool in cargo go; do
  command -v $tool >/dev/null || { echo "setup: $tool is missing; install Rust by rustup, and Go 1.26 or later" >&2; exit 1; }
done
# The toolchain file names the target, but where rustup may not install by itself, it has to be told.
target=x86_64-unknown-linux-musl
if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx $target; then
  echo "setup: installing Rust's target $target (the static binary)"
  rustup target add $target
fi
[ ${#missing[@]} != 0 ] || exit 0
command -v apt-get >/dev/null || { echo "setup: install these with your package manager: ${missing[*]}" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "setup: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
# The servers among them are only started by tests, in places of their own.
[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: installed ${missing[*]}"
