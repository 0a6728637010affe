{{- define "doorman.name" -}}
{{- if contains "doorman" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-doorman" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "doorman.operator" -}}
{{ include "doorman.name" . }}-operator
{{- end }}

{{- define "doorman.reader" -}}
{{ .Values.rbac.gatewayReader | default (printf "%s-gateway-reader" (include "doorman.name" .)) }}
{{- end }}

{{- define "doorman.writer" -}}
{{ .Values.rbac.gatewayWriter | default (printf "%s-gateway-writer" (include "doorman.name" .)) }}
{{- end }}

{{- define "doorman.selector" -}}
app.kubernetes.io/name: doorman-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "doorman.labels" -}}
{{ include "doorman.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: doorman
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
