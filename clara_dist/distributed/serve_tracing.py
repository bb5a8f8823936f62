"""OpenTelemetry traces of requests, as an option: ``tracing_config`` of Serve's configuration names `otlp`.

Serve makes the spans (proxy, ingress, engine, retriever), keeps the caller's ``traceparent`` and samples.
"""

from __future__ import annotations

from typing import Any

from clara_dist.errors import ConfigError


def otlp() -> list[Any]:
    """Serve's hook for span processors: to the collector that ``OTEL_EXPORTER_OTLP_ENDPOINT`` names, over HTTP.

    Raises:
        ConfigError: The exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "traces need OpenTelemetry's exporter, which is not installed",
            got=error,
            hint="pip install 'clara-dist[tracing]'",
        ) from error
    return [BatchSpanProcessor(OTLPSpanExporter())]
