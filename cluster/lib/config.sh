# Part of cluster.sh: the certificates and configuration files of a cluster and its nodes.

ca() { # ca FILE CN
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$2" \
    -addext keyUsage=critical,digitalSignature,keyCertSign -keyout "$1.key" -out "$1.crt" 2>/dev/null
}
cert() { # cert FILE CA SUBJECT [SAN]
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$3" -keyout "$1.key" 2>/dev/null |
    openssl x509 -req -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 3650 -out "$1.crt" 2>/dev/null \
      -extfile <(echo "extendedKeyUsage=serverAuth,clientAuth"; [ -z "${4:-}" ] || echo "subjectAltName=$4")
}
kubeconfig() { # kubeconfig FILE CERT
  local b64="base64 -w0" server
  server=$NET.$(<"$dir/nodes/1/index")
  cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: $name, cluster: {server: "https://$server:6443", certificate-authority-data: $($b64 pki/ca.crt)}}]
users: [{name: $name, user: {client-certificate-data: $($b64 "$2.crt"), client-key-data: $($b64 "$2.key")}}]
contexts: [{name: $name, context: {cluster: $name, user: $name}}]
current-context: $name
YAML
}
configure_cluster() (
  umask 077; at 1; cd "$dir"; mkdir -p pki etc
  ca pki/ca kubernetes; ca pki/front-proxy-ca front-proxy
  openssl genrsa -out pki/sa.key 2048 2>/dev/null
  cert pki/apiserver pki/ca /CN=kube-apiserver "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$ip,IP:$ip6,IP:$API_IP"
  cert pki/apiserver-kubelet pki/ca /O=system:masters/CN=kube-apiserver-kubelet-client
  cert pki/front-proxy pki/front-proxy-ca /CN=front-proxy-client
  cert pki/admin pki/ca /O=system:masters/CN=admin
  kubeconfig kubeconfig pki/admin
  local p; for p in kube-controller-manager kube-scheduler kube-proxy; do
    cert pki/$p pki/ca /CN=system:$p; kubeconfig etc/$p.kubeconfig pki/$p
  done
  cat >etc/kube-proxy.yaml <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY_MODE
nftables: {minSyncPeriod: $PROXY_SYNC}
iptables: {minSyncPeriod: $PROXY_SYNC}
clusterCIDR: $POD_CIDR,$POD_CIDR6
clientConnection: {kubeconfig: $dir/etc/kube-proxy.kubeconfig}
metricsBindAddress: 127.0.0.1:10249
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
)
configure_node() (
  umask 077; cd "$dir"; mkdir -p "$home"/{log,etc/cni/net.d,root/{etcd,kubelet,containerd,cni,pods,containers}}
  cert "$home/etc/kubelet" pki/ca "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$ip,IP:$ip6"
  kubeconfig "$home/etc/kubelet.kubeconfig" "$home/etc/kubelet"
  cat >"$home/etc/containerd.toml" <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "tailwharf.test/pause:1"
restrict_oom_score_adj = true          # lowering it needs CAP_SYS_RESOURCE
disable_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$CNI_BIN"
conf_dir = "$home/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
TOML
  cat >"$home/etc/cni/net.d/10-pods.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods4 "$n")"}], [{"subnet": "$(pods6 "$n")"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  cat >"$home/etc/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $home/etc/kubelet.crt
tlsPrivateKeyFile: $home/etc/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDomain: cluster.local
clusterDNS: [$DNS_IP]
resolvConf: /run/resolv.conf
imageGCHighThresholdPercent: 100       # never collect images: there is nowhere to pull them from
evictionHard: {memory.available: 100Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
YAML
  cat >"$home/etc/node.nft" <<NFT
table inet node {
  chain leave { # a pod has its node's address for all but pods
    type nat hook postrouting priority srcnat
    oifname eth0 ip saddr $POD_CIDR ip daddr != { $POD_CIDR, 224.0.0.0/4 } masquerade
    oifname eth0 ip6 saddr $POD_CIDR6 ip6 daddr != { $POD_CIDR6, ff00::/8 } masquerade
  }
}
NFT
  # On an open node a peer's first datagram takes the connection-table entry that the pod's own
  # would need; the pod's is then sent from another port, and two pods behind two nodes never meet.
  [ "$FIREWALL" = open ] || cat >>"$home/etc/node.nft" <<NFT
table inet node {
  chain enter {
    type filter hook input priority filter
    iifname eth0 ip saddr { $(each eval 'echo "$ip,"') } accept
    iifname eth0 ip6 saddr { $(each eval 'echo "$ip6,"') } accept
    iifname eth0 meta l4proto udp ct state new drop
  }
}
NFT
)
