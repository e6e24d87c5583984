#!/usr/bin/env bash
# Makes the images of the servers that demo and tests expose: Debian's nginx, with curl as a client beside it, and the echo server of the testkit.
#
#   servers.sh DIR        writes DIR/nginx.tar and DIR/echo.tar
#
# Needs nginx-light and curl of Debian and the release build of the workspace.
set -euo pipefail
out=${1:?DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
mkdir -p "$out"

nginx=$(command -v nginx || echo /usr/sbin/nginx)
[ -x "$nginx" ] || { echo "servers.sh: nginx is missing: apt-get install nginx-light" >&2; exit 1; }
curl=$(command -v curl) || { echo "servers.sh: curl is missing: apt-get install curl" >&2; exit 1; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cat >"$work/nginx.conf" <<CONF
daemon off;
pid /tmp/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; root /usr/share/nginx/html; }
}
CONF
echo 'root:x:0:0::/:/bin/false
nobody:x:65534:65534::/:/bin/false' >"$work/passwd"
echo 'root:x:0:
nogroup:x:65534:' >"$work/group"
adds=(--add "$nginx:/usr/sbin/nginx" --add "$curl:/usr/bin/curl" --add "$work/nginx.conf:/etc/nginx/nginx.conf" --add "$work/passwd:/etc/passwd"
  --add "$work/group:/etc/group" --add /usr/share/nginx/html/index.html:/usr/share/nginx/html/index.html --dir /tmp:1777 --dir /var/log/nginx)
# A shell and tar beside it, for kubectl exec and kubectl cp.
shell=$(readlink -f /bin/sh) tar=$(command -v tar) cat=$(command -v cat)
adds+=(--add "$shell:/bin/sh" --add "$(readlink -f "$tar"):/bin/tar" --add "$(readlink -f "$cat"):/bin/cat")
programs=("$nginx" "$curl" "$shell" "$tar" "$cat")
while read -r library; do adds+=(--add "$(readlink -f "$library"):$library"); done \
  < <(ldd "${programs[@]}" | grep -o '/[^ :]*' | grep -vxF -f <(printf '%s\n' "${programs[@]}") | sort -u)
"$here/oci-image.py" -o "$out/nginx.tar" -t tailwharf.test/nginx:debian "${adds[@]}" --entrypoint /usr/sbin/nginx

"$here/oci-image.py" -o "$out/echo.tar" -t tailwharf.test/echo:dev --user 0 \
  --add "$top/target/x86_64-unknown-linux-musl/release/echo:/echo" --entrypoint /echo
