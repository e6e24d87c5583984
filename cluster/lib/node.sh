# Part of cluster.sh: one node, from outside (cgroups, start, end) and from inside (PID 1).

# --- cgroups: in each hierarchy the node gets /tailwharf/NAME/NODE --------------------
cgroup_mounts() { awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts | sort -u; }
cgroup_dirs() { local m; for m in $(cgroup_mounts); do [ ! -d "$m/tailwharf/$1" ] || echo "$m/tailwharf/$1"; done; }
cgroup_procs() { local d; for d in $(cgroup_dirs "$1"); do find "$d" -name cgroup.procs -exec cat {} +; done 2>/dev/null | sort -un; }
enter_cgroups() { # moves the calling shell
  local m d f
  for m in $(cgroup_mounts); do
    for d in "$m/tailwharf" "$m/tailwharf/$name" "$m/tailwharf/$name/$n"; do
      mkdir -p "$d"
      for f in cpuset.cpus cpuset.mems; do   # v1: empty at first, and then nothing may enter
        [ ! -e "$m/cpuset.cpu_exclusive" ] || cat "${d%/*}/$f" >"$d/$f"
      done
      if [ -e "$m/cgroup.controllers" ]; then
        for f in $(cat "${d%/*}/cgroup.controllers"); do echo "+$f" >"${d%/*}/cgroup.subtree_control" || true; done
      fi
    done
    echo "$BASHPID" >"$d/cgroup.procs"
  done
}
remove_cgroups() { # remove_cgroups NAME[/NODE]: waits until nothing runs there; they hold nothing else
  local t left d
  for ((t = 0; t < 100; t++)); do
    left=$(cgroup_procs "$1"); [ -n "$left" ] || break
    [ $t -lt 20 ] || kill -KILL $left 2>/dev/null || true
    sleep 0.1
  done
  [ -z "$left" ] || die "$1: these processes do not end: $(echo $left)"
  for d in $(cgroup_dirs "$1"); do
    find "$d" -depth -type d -exec rmdir {} \;
    [[ $1 == */* ]] || rmdir --ignore-fail-on-non-empty "${d%/*}" 2>/dev/null || true
  done
}

# --- from outside -------------------------------------------------------------------
boot() {
  rm -f "$home/ended" "$home/init.pid"
  cat /proc/sys/kernel/random/uuid >"$home/boot_id"
  (
    enter_cgroups
    exec setsid unshare --mount --uts --ipc --net --pid --cgroup --propagation private -- \
      bash -c '"$@" &' node bash "$self" init "$name/$n"
  ) </dev/null >>"$home/log/init.log" 2>&1
  local end=$((SECONDS + 10))
  until running; do [ $SECONDS -lt $end ] || give_up init "the node did not start"; sleep 0.1; done
  # the same hardware address each time: neighbours may still know it
  ip link add "$LINK$index" type veth peer name eth0 address "$(printf 02:74:77:68:00:%02x "$index")" netns "$pid"
  ip link set "$LINK$index" master $BRIDGE up
  say "node started, address $ip"
}
# `Version` of the container runtime interface (gRPC, an empty message), not just of containerd: after a
# restart that comes later, and the kubelet does not wait for it.
runtime_answers() {
  head -c 5 /dev/zero | nsenter -t "$pid" -m -- curl -si --max-time 5 --http2-prior-knowledge \
    --unix-socket /run/containerd/containerd.sock -H 'content-type: application/grpc' --data-binary @- \
    http://localhost/runtime.v1.RuntimeService/Version | grep -a 'grpc-status: 0'
}
signal_kill() { if running; then kill -KILL "$pid"; fi; }
remove_link() { ip link del "$LINK$index" 2>/dev/null || true; }

# --- from inside --------------------------------------------------------------------
declare -A part_of
start() { # start PART CMD...; the shell has what it starts ignore two signals, and pods would inherit that
  env --default-signal=INT,QUIT "${@:2}" >>"$home/log/$1.log" 2>&1 </dev/null & part_of[$!]=$1
}
init() {
  [ $$ = 1 ] || usage
  set -x
  local me; read -r me _ </proc/self/stat  # /proc is still the host's: our number there
  echo "$me $(start_time "$me")" >"$home/init.pid.new"; mv "$home/init.pid.new" "$home/init.pid"
  own_files
  own_network
  cd "$dir"; export PATH=$KUBE/bin:$PATH HOME=/root
  unset KUBECONFIG
  start containerd containerd --config "$home/etc/containerd.toml" --log-level warn
  if [ "$n" = 1 ]; then control_plane; else wait_until test -e api-ready; fi
  pid=1 wait_until runtime_answers
  start kubelet kubelet --config "$home/etc/kubelet.yaml" --kubeconfig "$home/etc/kubelet.kubeconfig" --node-ip "$ip,$ip6"
  start kube-proxy kube-proxy --config etc/kube-proxy.yaml
  reap
}
own_files() { # a file system view of our own: what a node writes goes to $home/root
  local cgroups dev mp type opts kv f v
  hostname "$node"
  cgroups=$(awk '$3 ~ /^cgroup2?$/ { print $1, $2, $3, $4 }' /proc/mounts)
  mount --make-rshared /                   # kubelet wants shared mounts; the host sees none of them
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  [ "$(wc -l <<<"$cgroups")" = 1 ] || mount -t tmpfs cgroup /sys/fs/cgroup
  while read -r dev mp type opts; do
    mkdir -p "$mp"; [[ $opts != *name=* ]] || opts+=,none
    mount -t "$type" -o "$opts" "$dev" "$mp"
  done <<<"$cgroups"
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then # v2: processes only in leaves
    mkdir -p /sys/fs/cgroup/node; echo 1 >/sys/fs/cgroup/node/cgroup.procs
    for f in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$f" >/sys/fs/cgroup/cgroup.subtree_control || true; done
  fi
  mount -t tmpfs -o mode=755 node /run
  for kv in kubelet=/var/lib/kubelet containerd=/var/lib/containerd cni=/var/lib/cni pods=/var/log/pods containers=/var/log/containers; do
    mkdir -p "${kv#*=}"; mount --bind "$home/root/${kv%%=*}" "${kv#*=}"
  done
  # kubelet sets these for the whole machine; show it the values that it wants.
  for kv in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
      kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    f=${kv%=*}; v=/run/sysctl/${f//\//.}; mkdir -p /run/sysctl; echo "${kv#*=}" >"$v"; mount --bind "$v" "/proc/sys/$f"
  done
  mount --bind "$home/boot_id" /proc/sys/kernel/random/boot_id   # tells the kubelet that the node was restarted
  echo "# no resolver beyond the cluster" >/run/resolv.conf
}
own_network() {
  local m
  for _ in $(seq 100); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.1; done
  ip link set lo up; ip addr add "$ip/24" dev eth0; ip addr add "$ip6/64" dev eth0 nodad; ip link set eth0 up
  ip route add default via $NET.1; ip route add default via $NET6:1
  echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
  for m in $(nodes); do
    [ "$m" != "$n" ] || continue
    ( at "$m"; ip route add "$(pods4 "$m")" via "$ip"; ip route add "$(pods6 "$m")" via "$ip6" )
  done
  nft -f "$home/etc/node.nft"
}
control_plane() {
  rm -f api-ready
  start etcd etcd --data-dir "$home/root/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --logger zap --log-level warn
  start kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "$ip" \
    --client-ca-file pki/ca.crt --tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key \
    --kubelet-client-certificate pki/apiserver-kubelet.crt --kubelet-client-key pki/apiserver-kubelet.key \
    --kubelet-certificate-authority pki/ca.crt --kubelet-preferred-address-types InternalIP \
    --requestheader-client-ca-file pki/front-proxy-ca.crt --requestheader-allowed-names front-proxy-client \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
    --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file pki/front-proxy.crt --proxy-client-key-file pki/front-proxy.key \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file pki/sa.key --service-account-key-file pki/sa.key \
    --service-cluster-ip-range $SERVICE_CIDR,$SERVICE_CIDR6 --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --allow-privileged
  wait_until kubectl --kubeconfig kubeconfig get --raw /readyz   # the others would ask at once, and then wait long
  touch api-ready
  start kube-controller-manager kube-controller-manager --kubeconfig etc/kube-controller-manager.kubeconfig \
    --leader-elect=false --bind-address 127.0.0.1 --use-service-account-credentials --kube-api-qps 200 --kube-api-burst 400 \
    --root-ca-file pki/ca.crt --service-account-private-key-file pki/sa.key \
    --cluster-signing-cert-file pki/ca.crt --cluster-signing-key-file pki/ca.key \
    --service-cluster-ip-range $SERVICE_CIDR,$SERVICE_CIDR6
  start kube-scheduler kube-scheduler --kubeconfig etc/kube-scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1
}
wait_until() { # wait_until CMD...; ends too when a part has ended, which `reap` then notes
  local p; set +x
  until "$@" >/dev/null 2>&1; do
    for p in "${!part_of[@]}"; do kill -0 "$p" || break 2; done 2>/dev/null
    sleep 0.2
  done
  set -x
}
reap() { # and note which part ended; `up` and `list` tell
  local rc p
  while :; do
    rc=0; p=; wait -n -p p || rc=$?
    [ -n "$p" ] || { [ $rc != 127 ] || exit 1; continue; }
    [ -z "${part_of[$p]:-}" ] || echo "${part_of[$p]} $rc" >>"$home/ended"
  done
}
