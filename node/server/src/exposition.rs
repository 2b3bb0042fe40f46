//! The two text forms of metrics: OpenMetrics, as the library writes it, and the older Prometheus text format made
//! from it, for whoever does not ask for OpenMetrics.
//!
//! They differ little: the older one names a counter's family with its `_total`, knows neither units nor the type
//! `info`, and has no end mark.

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Content type and body for a scrape with this `Accept` header.
pub fn expose(registry: &Registry, accept: &str) -> Result<(&'static str, String), fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    if accept.contains("application/openmetrics-text") {
        Ok((OPEN_METRICS, text))
    } else {
        Ok((PROMETHEUS_TEXT, to_prometheus_text(&text)))
    }
}

fn to_prometheus_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        // The type, which decides the family's name, comes after the help.
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take() {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::with_prefix("k");
        registry.register("requests", "Requests", Counter::<u64>::default());
        registry.register_with_unit("disk", "Disk", Unit::Bytes, Gauge::<i64>::default());
        registry.register("build", "Build", Info::new([("version", "1")]));
        registry
    }

    #[test]
    fn whoever_asks_for_open_metrics_gets_it() {
        let accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3";
        let (content_type, text) = expose(&registry(), accept).unwrap();
        assert_eq!(content_type, OPEN_METRICS);
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("# TYPE k_requests counter\nk_requests_total 0\n"), "{text}");
    }

    #[test]
    fn others_get_the_older_text_format() {
        let (content_type, text) = expose(&registry(), "*/*").unwrap();
        assert_eq!(content_type, PROMETHEUS_TEXT);
        assert_eq!(
            text,
            "# HELP k_requests_total Requests.\n# TYPE k_requests_total counter\nk_requests_total 0\n\
             # HELP k_disk_bytes Disk.\n# TYPE k_disk_bytes gauge\nk_disk_bytes 0\n\
             # HELP k_build_info Build.\n# TYPE k_build_info gauge\nk_build_info{version=\"1\"} 1\n"
        );
    }
}
