{{/* The settings of the operator's process. */}}
{{- define "tailwharf.operatorEnv" -}}
- name: OPERATOR_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: TAILWHARF_LOG
  value: {{ include "tailwharf.logging" . | quote }}
- name: OPERATOR_LOGIN_SERVER
  value: {{ include "tailwharf.loginServer" . | quote }}
- name: OPERATOR_HOSTNAME
  value: {{ .Values.operatorConfig.hostname | quote }}
- name: OPERATOR_INITIAL_TAGS
  value: {{ join "," .Values.operatorConfig.defaultTags | quote }}
- name: PROXY_TAGS
  value: {{ .Values.proxyConfig.defaultTags | quote }}
- name: PROXY_IMAGE
  value: {{ include "tailwharf.proxyImage" . | quote }}
{{- with .Values.imagePullSecrets }}
- name: TAILWHARF_IMAGE_PULL_SECRETS
  value: {{ include "tailwharf.names" . | quote }}
{{- end }}
- name: TAILWHARF_POOL_REPLICAS
  value: {{ .Values.pool.replicas | quote }}
- name: OPERATOR_INGRESS_CLASS_NAME
  value: {{ .Values.ingressClass.name | quote }}
- name: APISERVER_PROXY
  value: {{ .Values.apiServerProxyConfig.mode | quote }}
{{- if include "tailwharf.isTrue" .Values.defaultLoadBalancer }}
- name: OPERATOR_DEFAULT_LOAD_BALANCER
  value: "true"
{{- end }}
{{- with .Values.watchNamespaces }}
- name: OPERATOR_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.proxyConfig.defaultProxyClass }}
- name: PROXY_DEFAULT_CLASS
  value: {{ . | quote }}
{{- end }}
{{- if .Values.oauth.audience }}
- name: CLIENT_ID
  value: {{ required "oauth.clientId is needed beside oauth.audience" .Values.oauth.clientId | quote }}
{{- else }}
- name: CLIENT_ID_FILE
  value: /oauth/client_id
- name: CLIENT_SECRET_FILE
  value: /oauth/client_secret
{{- end }}
{{- with .Values.operatorConfig.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tailwharf.credentialMounts" -}}
{{- if .Values.oauth.audience -}}
- name: identity-token
  mountPath: /var/run/secrets/tailscale/serviceaccount
  readOnly: true
{{- else -}}
- name: oauth
  mountPath: /oauth
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "tailwharf.credentialVolumes" -}}
{{- if .Values.oauth.audience -}}
- name: identity-token
  projected:
    sources:
      - serviceAccountToken:
          audience: {{ .Values.oauth.audience | quote }}
          expirationSeconds: 3600
          path: token
{{- else if .Values.oauthSecretVolume -}}
- name: oauth
  {{- toYaml .Values.oauthSecretVolume | nindent 2 }}
{{- else -}}
- name: oauth
  secret:
    secretName: {{ include "tailwharf.fullname" . }}-oauth
{{- end -}}
{{- end -}}
