{{/* Generated from the manifests in deploy/ by `cargo xtask generate`: change the rules there. */}}

{{- define "tailwharf.rules.tailscale-operator" -}}
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, patch]
- apiGroups: [""]
  resources: [services/status]
  verbs: [patch]
- apiGroups: [networking.k8s.io]
  resources: [ingresses]
  verbs: [get, list, watch, patch]
- apiGroups: [networking.k8s.io]
  resources: [ingresses/status]
  verbs: [patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{- define "tailwharf.rules.tailscale-operator-cluster" -}}
- apiGroups: [tailscale.com]
  resources: [connectors, proxyclasses]
  verbs: [get, list, watch, patch]
- apiGroups: [tailscale.com]
  resources: [connectors/status, proxyclasses/status]
  verbs: [patch]
- apiGroups: [tailscale.com]
  resources: [dnsconfigs]
  verbs: [get, list, watch]
- apiGroups: [tailscale.com]
  resources: [dnsconfigs/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [nodes]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [servicecidrs]
  verbs: [get, list, watch]
{{- end }}

{{- define "tailwharf.rules.tailscale-operator-pods" -}}
- apiGroups: [""]
  resources: [pods, namespaces]
  verbs: [get, list, watch]
{{- end }}

{{- define "tailwharf.rules.tailscale-operator-certificates" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
{{- end }}

{{- define "tailwharf.rules.operator" -}}
- apiGroups: [tailwharf.dev]
  resources: [identities]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [tailwharf.dev]
  resources: [identities/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# What leads pods of the cluster to devices of the tailnet.
- apiGroups: [""]
  resources: [services]
  verbs: [create, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# The nameserver and its records.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, update, patch]
{{- end }}

{{- define "tailwharf.rules.tailscale-auth-proxy" -}}
- apiGroups: [""]
  resources: [users, groups]
  verbs: [impersonate]
- apiGroups: [authentication.k8s.io]
  resources:
    - userextras/tailwharf.dev/device
    - userextras/tailwharf.dev/device-id
    - userextras/tailwharf.dev/request-id
    - userextras/tailwharf.dev/original-user
  verbs: [impersonate]
{{- end }}

{{- define "tailwharf.rules.apiserver-proxy" -}}
- apiGroups: [tailwharf.dev]
  resources: [identities]
  verbs: [get, list, watch]
- apiGroups: [tailwharf.dev]
  resources: [identities/status]
  resourceNames: [ts-operator]
  verbs: [patch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, update, patch]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [ts-operator-0, tailwharf-apiserver-proxy-acme]
  verbs: [get, patch, update]
{{- end }}
