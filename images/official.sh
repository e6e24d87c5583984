#!/usr/bin/env bash
# Makes the images of the official proxy and operator that tests of the migration install, from the programs that setup/peers.sh built.
#
#   official.sh DIR       writes DIR/official-proxy.tar and DIR/official-operator.tar
set -euo pipefail
out=${1:?DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=$(sed -n 's/^VERSION=//p' "$here/../setup/peers.sh" | head -1)
bin=${XDG_CACHE_HOME:-$HOME/.cache}/tailwharf/peers/$version/bin
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out"

# The proxy's init container is a line of shell that calls sysctl.
shell=$(readlink -f /bin/sh) sysctl=$(command -v sysctl)
adds=(--add "$shell:/bin/sh:755" --add "$sysctl:/sbin/sysctl:755")
while read -r library; do adds+=(--add "$(readlink -f "$library"):$library"); done \
  < <(ldd "$shell" "$sysctl" | grep -o '/[^ :]*' | grep -vxF -e "$shell" -e "$sysctl" | sort -u)
for program in containerboot tailscaled tailscale; do adds+=(--add "$bin/$program:/usr/local/bin/$program:755"); done
path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"$here/oci-image.py" -o "$out/official-proxy.tar" -t "tailwharf.test/tailscale:$version" --ca-certs "${adds[@]}" --env "$path" \
  --entrypoint /usr/local/bin/containerboot
"$here/oci-image.py" -o "$out/official-operator.tar" -t "tailwharf.test/k8s-operator:$version" --ca-certs --env "$path" \
  --add "$bin/k8s-operator:/usr/local/bin/operator:755" --entrypoint /usr/local/bin/operator
