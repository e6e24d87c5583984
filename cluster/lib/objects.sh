# Part of cluster.sh: what a cluster holds from the start. The nodes are declared before their
# kubelets register, since they carry the pod ranges; and cluster DNS.

declare_objects() { { each node_object; dns_objects; } | k apply --server-side -f -; }
node_object() {
  cat <<YAML
apiVersion: v1
kind: Node
metadata: {name: $node}
spec: {podCIDR: $(pods4 "$n"), podCIDRs: ["$(pods4 "$n")", "$(pods6 "$n")"]}
---
YAML
}
dns_objects() {
  local image; image=$(grep -o 'tailwharf.test/coredns:[^"]*' <(tar -xOf "$KUBE/images/coredns.tar" manifest.json))
  cat <<YAML
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
        errors
        health
        ready
        kubernetes {
            pods insecure
            ttl 5
        }
        cache 5
        loadbalance
        reload 2s
    }
    # the machine that the cluster runs on
    host.tailwharf.test:53 host6.tailwharf.test:53 {
        hosts {
            $NET.1 host.tailwharf.test
            $NET6:1 host6.tailwharf.test
        }
    }
    # no resolver beyond the cluster: say so at once
    .:53 {
        errors
        template ANY ANY {
            rcode NXDOMAIN
        }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      serviceAccountName: coredns
      priorityClassName: system-cluster-critical
      dnsPolicy: Default
      tolerations: [{operator: Exists}]
      containers:
      - name: coredns
        image: $image
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        ports: [{name: dns, containerPort: 53, protocol: UDP}, {name: dns-tcp, containerPort: 53, protocol: TCP}]
        resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 170Mi}}
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /health, port: 8080}}
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
        volumeMounts: [{name: config, mountPath: /etc/coredns, readOnly: true}]
      volumes: [{name: config, configMap: {name: coredns}}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns, kubernetes.io/name: CoreDNS}}
spec:
  ipFamilyPolicy: PreferDualStack
  clusterIP: $DNS_IP
  clusterIPs: [$DNS_IP, "$DNS_IP6"]
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
YAML
}
dns_answers() { # asks the Service's address, from the node: kube-proxy, CNI and CoreDNS in one
  nsenter -t "$pid" -n -- python3 - $DNS_IP $API_IP <<'PY'
import socket, sys
q = b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(l)]) + l.encode() for l in "kubernetes.default.svc.cluster.local".split(".")) + b"\0\0\1\0\1"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.sendto(q, (sys.argv[1], 53))
sys.exit(not s.recv(512).endswith(socket.inet_aton(sys.argv[2])))
PY
}
