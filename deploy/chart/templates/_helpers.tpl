{{- define "ceremony.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that never change, of one workload: a dict of root and name. */}}
{{- define "ceremony.selector" -}}
app.kubernetes.io/name: ceremony-engine
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "ceremony.labels" -}}
app.kubernetes.io/name: ceremony-engine
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "ceremony.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "ceremony.embedded" -}}
{{- if hasPrefix "sqlite://" .Values.log.url }}true{{ end -}}
{{- end -}}

{{- define "ceremony.stores" -}}
{{- if or .Values.valkey.host .Values.neo4j.uri }}true{{ end -}}
{{- end -}}

{{- define "ceremony.definitions" -}}
{{- .Values.definitions.configMap | default (printf "%s-definitions" (include "ceremony.name" .)) -}}
{{- end -}}

{{/* The workloads as YAML: name -> {roles, and the values of `worker` with those of the role over them}. */}}
{{- define "ceremony.workloads" -}}
{{- $found := dict -}}
{{- if .Values.onePerRole -}}
{{- range $role := list "engine" "bridge" "projector" -}}
{{- if or (ne $role "projector") (include "ceremony.stores" $) -}}
{{- $own := mergeOverwrite (deepCopy $.Values.worker) (deepCopy (index $.Values.roles $role)) -}}
{{- $_ := set $found $role (set $own "roles" (list $role)) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $roles := list "engine" "bridge" -}}
{{- if include "ceremony.stores" . -}}{{- $roles = append $roles "projector" -}}{{- end -}}
{{- $_ := set $found "worker" (set (deepCopy .Values.worker) "roles" $roles) -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{/* Refuses values that contradict each other; the schema judges each alone. */}}
{{- define "ceremony.check" -}}
{{- range $name, $workload := fromYaml (include "ceremony.workloads" .) -}}
{{- if and $workload.autoscaling.enabled (gt (int $workload.autoscaling.maxReplicas) (int $.Values.log.partitions)) -}}
{{- fail (printf "%s: autoscaling.maxReplicas is %v, and log.partitions only %v: further workers would own nothing" $name $workload.autoscaling.maxReplicas $.Values.log.partitions) -}}
{{- end -}}
{{- if and $workload.autoscaling.enabled (gt (int $workload.autoscaling.minReplicas) (int $workload.autoscaling.maxReplicas)) -}}
{{- fail (printf "%s: autoscaling.minReplicas is above maxReplicas" $name) -}}
{{- end -}}
{{- if and (include "ceremony.embedded" $) (or $.Values.onePerRole $workload.autoscaling.enabled (ne (int $workload.replicas) 1)) -}}
{{- fail "log.url is an embedded log, which has one process: set worker.replicas to 1, without onePerRole and autoscaling" -}}
{{- end -}}
{{- end -}}
{{- if or (le (int .Values.terminationGracePeriodSeconds) (int .Values.stopSeconds)) (lt (int .Values.stopSeconds) (int .Values.drainSeconds)) -}}
{{- fail "drainSeconds has to be below stopSeconds, and stopSeconds below terminationGracePeriodSeconds" -}}
{{- end -}}
{{- if and .Values.neo4j.uri (not .Values.neo4j.passwordSecret) -}}
{{- fail "neo4j.uri is set: neo4j.passwordSecret is required" -}}
{{- end -}}
{{- if and .Values.traces.headersSecret (not .Values.traces.endpoint) -}}
{{- fail "traces.headersSecret is set: traces.endpoint is required" -}}
{{- end -}}
{{- if and .Values.definitions.files .Values.definitions.configMap -}}
{{- fail "set one of definitions.files and definitions.configMap" -}}
{{- end -}}
{{- if not (or .Values.definitions.files .Values.definitions.configMap) -}}
{{- fail "no definitions: set definitions.files or definitions.configMap" -}}
{{- end -}}
{{- end -}}
