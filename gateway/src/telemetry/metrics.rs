//! Prometheus metrics, by the names of the reference (gateway behaviour 21.2).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::per_api::PerApi;
use crate::accounting::Kind;

/// Label of a status code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Code {
    code: u16,
}

/// Label of a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Limit {
    limit: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    duration: Histogram,
    requests: Family<Code, Counter>,
    limited: Family<Limit, Counter>,
    /// Credits taken from balances.
    pub credits_charged: Counter,
    /// Calls that could not be charged.
    pub credits_refused: Counter,
    /// Upstream attempts that took too long.
    pub upstream_timeouts: Counter,
    /// Upstream attempts after the first of a call.
    pub retries: Counter,
    log_records_dropped: Counter,
    /// Open connections of clients.
    pub connections: Gauge,
    /// APIs in the snapshot that can be called.
    pub apis_served: Gauge,
    /// Objects that are defined but not served.
    pub objects_rejected: Gauge,
    /// APIs whose Secrets can't be used.
    pub secrets_unusable: Gauge,
    /// Snapshots put into service.
    pub snapshots: Counter,
    /// What is counted of each API.
    pub apis: Arc<PerApi>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with(Counter::default(), Counter::default())
    }
}

impl Metrics {
    /// With what is counted elsewhere: limits that were decided without Redis, and records that the logs dropped.
    pub fn with(limits_without_redis: Counter, log_records_dropped: Counter) -> Self {
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let metrics = Self {
            registry: Registry::default(),
            duration: Histogram::new(buckets),
            requests: Family::default(),
            limited: Family::default(),
            credits_charged: Counter::default(),
            credits_refused: Counter::default(),
            upstream_timeouts: Counter::default(),
            retries: Counter::default(),
            log_records_dropped,
            connections: Gauge::default(),
            apis_served: Gauge::default(),
            objects_rejected: Gauge::default(),
            secrets_unusable: Gauge::default(),
            snapshots: Counter::default(),
            apis: Arc::default(),
        };
        metrics.registered(limits_without_redis)
    }

    fn registered(mut self, limits_without_redis: Counter) -> Self {
        let r = &mut self.registry;
        r.register("doorman_http_request_duration_seconds", "Time to answer a call under /api", self.duration.clone());
        r.register(
            "doorman_http_requests",
            "Calls under /api by status code, 499 where the client went away before the answer",
            self.requests.clone(),
        );
        r.register("doorman_upstream_timeouts", "Upstream attempts that took too long", self.upstream_timeouts.clone());
        r.register("doorman_http_retries", "Upstream attempts after the first of a call", self.retries.clone());
        let dropped = "Log records dropped because they came faster than they could be written";
        r.register("doorman_log_records_dropped", dropped, self.log_records_dropped.clone());
        r.register("doorman_connections", "Open connections of clients", self.connections.clone());
        r.register("doorman_apis_served", "APIs that can be called", self.apis_served.clone());
        r.register("doorman_objects_rejected", "Defined objects that are not served", self.objects_rejected.clone());
        let unusable = "APIs whose Secrets hold something else than what is needed: not served, or as before";
        r.register("doorman_api_secrets_unusable", unusable, self.secrets_unusable.clone());
        r.register(
            "doorman_limits_without_redis",
            "Limits decided while Redis was away: counted in the process, or refused with DOORMAN_LIMITS_FAIL_MODE=Closed",
            limits_without_redis,
        );
        r.register("doorman_limited", "Calls refused because a limit was reached", self.limited.clone());
        r.register("doorman_credits_charged", "Credits taken from balances", self.credits_charged.clone());
        r.register("doorman_credits_refused", "Calls that could not be charged", self.credits_refused.clone());
        r.register("doorman_snapshots", "Snapshots put into service", self.snapshots.clone());
        let apis = Arc::clone(&self.apis);
        self.showing(apis)
    }

    /// The same, and what is looked up for each answer.
    #[must_use]
    pub fn showing(mut self, collector: impl Collector) -> Self {
        self.registry.register_collector(Box::new(collector));
        self
    }

    /// Counts one call.
    pub fn request(&self, code: u16, elapsed: Duration) {
        self.duration.observe(elapsed.as_secs_f64());
        self.requests.get_or_create(&Code { code }).inc();
    }

    /// Counts a call that a limit refused.
    pub fn limited(&self, kind: &Kind) {
        let limit = match kind {
            Kind::Tier(_) | Kind::Quota(_) => "tier",
            Kind::Rule(_) => "rule",
            Kind::Rate => "rate",
            Kind::Throttle => "throttle",
            Kind::Bandwidth => "bandwidth",
        };
        self.limited.get_or_create(&Limit { limit }).inc();
    }

    /// The text Prometheus scrapes (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics can't be written");
        }
        text
    }

    /// The same in the text format that every version of Prometheus reads (0.0.4): counters are named in full, and
    /// nothing marks the end.
    pub fn render_classic(&self) -> String {
        let text = self.render();
        let counters: HashSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
        let mut classic = String::with_capacity(text.len() + 256);
        for line in text.lines() {
            let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            match described.and_then(|rest| rest.split_once(' ')) {
                Some((name, rest)) if counters.contains(name) => {
                    classic.extend([&line[..7], name, "_total ", rest, "\n"]);
                }
                None if line.starts_with('#') => {}
                _ => classic.extend([line, "\n"]),
            }
        }
        classic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_format_names_counters_in_full() {
        let metrics = Metrics::default();
        metrics.request(200, Duration::from_millis(7));
        let text = metrics.render_classic();
        for line in [
            "# TYPE doorman_http_requests_total counter",
            "# HELP doorman_http_requests_total Calls under /api by status code, 499 where the client went away before the answer.",
            "doorman_http_requests_total{code=\"200\"} 1",
            "# TYPE doorman_http_request_duration_seconds histogram",
            "doorman_http_request_duration_seconds_bucket{le=\"0.01\"} 1",
            "doorman_http_request_duration_seconds_count 1",
            "doorman_upstream_timeouts_total 0",
            "doorman_http_retries_total 0",
            "# TYPE doorman_apis_served gauge",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("# EOF") && text.ends_with('\n'));
    }
}
