{{/* Name of the operator's objects in its namespace. */}}
{{- define "tailwharf.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if .Values.nameOverride -}}
{{- if contains .Values.nameOverride .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- else -}}
operator
{{- end -}}
{{- end -}}

{{/* What to log. "dev" is the debug level in a form for people, which is the only form here. */}}
{{- define "tailwharf.logging" -}}
{{- if eq .Values.operatorConfig.logging "dev" }}debug{{ else }}{{ .Values.operatorConfig.logging }}{{ end -}}
{{- end -}}

{{/* Name of its objects that belong to the whole cluster. */}}
{{- define "tailwharf.clusterName" -}}
{{- if or .Values.fullnameOverride .Values.nameOverride -}}
{{- include "tailwharf.fullname" . -}}
{{- else -}}
tailscale-operator
{{- end -}}
{{- end -}}

{{/* Name of what may impersonate. */}}
{{- define "tailwharf.authProxyName" -}}
{{- if or .Values.fullnameOverride .Values.nameOverride -}}
{{- printf "%s-auth-proxy" (include "tailwharf.fullname" .) -}}
{{- else -}}
tailscale-auth-proxy
{{- end -}}
{{- end -}}

{{/* Whether there is an API-server proxy: "true" or nothing. */}}
{{- define "tailwharf.hasApiServerProxy" -}}
{{- if has (toString .Values.apiServerProxyConfig.mode) (list "true" "noauth") -}}true{{- end -}}
{{- end -}}

{{/* An image: {image, default: {repository, tag}}. "repo" is an older name of "repository", and wins. A digest wins over a tag. */}}
{{- define "tailwharf.image" -}}
{{- $repository := .image.repo | default .image.repository | default .fallback.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .fallback.tag | toString) -}}
{{- end -}}
{{- end -}}

{{- define "tailwharf.operatorImage" -}}
{{- include "tailwharf.image" (dict "image" .Values.operatorConfig.image "fallback" (dict "repository" "tailwharf/tailwharf" "tag" .Chart.AppVersion)) -}}
{{- end -}}

{{/* Proxies run the operator's image, unless one is named for them. */}}
{{- define "tailwharf.proxyImage" -}}
{{- $image := .Values.proxyConfig.image -}}
{{- if or $image.repo $image.repository -}}
{{- include "tailwharf.image" (dict "image" $image "fallback" (dict "repository" "" "tag" .Chart.AppVersion)) -}}
{{- else if or $image.tag $image.digest -}}
{{- $own := .Values.operatorConfig.image -}}
{{- include "tailwharf.image" (dict "image" $image "fallback" (dict "repository" ($own.repo | default $own.repository) "tag" .Chart.AppVersion)) -}}
{{- else -}}
{{- include "tailwharf.operatorImage" . -}}
{{- end -}}
{{- end -}}

{{- define "tailwharf.loginServer" -}}
{{- if .Values.loginServer -}}
{{- .Values.loginServer | trimSuffix "/" -}}
{{- else if include "tailwharf.isTrue" .Values.coordinator.enabled -}}
{{- include "tailwharf.coordinatorUrl" . -}}
{{- else -}}
https://controlplane.tailscale.com
{{- end -}}
{{- end -}}

{{- define "tailwharf.coordinatorUrl" -}}
{{- .Values.coordinator.serverUrl | default (printf "http://coordinator.%s.svc.cluster.local:8080" .Release.Namespace) | trimSuffix "/" -}}
{{- end -}}

{{/* Labels of every object of the chart. */}}
{{- define "tailwharf.labels" -}}
app.kubernetes.io/name: tailwharf
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Whether a value, given as a boolean or a string, is true: "true" or nothing. */}}
{{- define "tailwharf.isTrue" -}}
{{- if eq (toString .) "true" -}}true{{- end -}}
{{- end -}}

{{- define "tailwharf.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where pods may run. */}}
{{- define "tailwharf.placement" -}}
{{- with .Values.operatorConfig.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.operatorConfig.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.operatorConfig.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The names of a list of objects, with commas between them. */}}
{{- define "tailwharf.names" -}}
{{- $names := list -}}
{{- range . }}{{ $names = append $names .name }}{{ end -}}
{{- join "," $names -}}
{{- end -}}

{{/*
Gives a ClusterRole to the operator: {root, role}. In the whole cluster or, where values name the namespaces that are served, in these and its own.
*/}}
{{- define "tailwharf.bindWhereServed" -}}
{{- $root := .root -}}
{{- $role := .role -}}
{{- $name := include "tailwharf.fullname" $root -}}
{{- $namespaces := list "" -}}
{{- with $root.Values.watchNamespaces }}{{ $namespaces = append . $root.Release.Namespace | uniq }}{{ end -}}
{{- range $namespace := $namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ if $namespace }}RoleBinding{{ else }}ClusterRoleBinding{{ end }}
metadata:
  name: {{ $role }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "tailwharf.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $role }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}
