"""OpenTelemetry: the exporter of spans. Nothing imports it while no exporter is set."""
