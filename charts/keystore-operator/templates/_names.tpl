{{/* The name of every object: releases may be several on one Kubernetes, and two of these are not in a namespace. */}}
{{- define "keystore-operator.name" -}}
{{- if contains "keystore-operator" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-keystore-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "keystore-operator.selector" -}}
app.kubernetes.io/name: keystore-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "keystore-operator.labels" -}}
{{ include "keystore-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
app.kubernetes.io/component: operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}
