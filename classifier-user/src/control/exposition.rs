//! Formats of metrics: OpenMetrics, or the older text format of Prometheus.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// Format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, for all that do not ask for the other.
    Text,
}

impl Exposition {
    /// Returns what an Accept header asks for.
    pub(super) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Exposition::OpenMetrics
        } else {
            Exposition::Text
        }
    }

    /// The content type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Exposition::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes metrics as text.
///
/// # Errors
///
/// When there is no memory for it.
pub(super) fn text(
    collector: impl Collector + 'static,
    exposition: Exposition,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("breakout");
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match exposition {
        Exposition::OpenMetrics => text,
        Exposition::Text => as_text_format(&text),
    })
}

/// The older format names a counter's family as its samples are named, and knows no units and no end.
fn as_text_format(open_metrics: &str) -> String {
    let lines: Vec<&str> = open_metrics.lines().collect();
    let counters: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in lines {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("UNIT" | "EOF"), _) => continue,
            (Some("#"), Some(kind), Some(name)) if counters.contains(&name) => {
                let rest = words.next().unwrap_or_default();
                text += &format!("# {kind} {name}_total {rest}");
            }
            _ => text += line,
        }
        text.push('\n');
    }
    text
}

/// A number with its labels.
pub(super) type Sample = (Vec<(&'static str, String)>, f64);

pub(super) enum Value {
    Counter(f64),
    Gauge(f64),
}

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Value::Counter(value) => encoder.encode_counter::<NoLabelSet, _, f64>(value, None),
            Value::Gauge(value) => encoder.encode_gauge(value),
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Value::Counter(_) => MetricType::Counter,
            Value::Gauge(_) => MetricType::Gauge,
        }
    }
}

/// Writes families of metrics.
pub(super) struct Families<'a>(pub(super) DescriptorEncoder<'a>);

impl Families<'_> {
    pub(super) fn put(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: fn(f64) -> Value,
        samples: impl IntoIterator<Item = Sample>,
    ) -> fmt::Result {
        let kind = value(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, number) in samples {
            if labels.is_empty() {
                return value(number).encode(family);
            }
            value(number).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
