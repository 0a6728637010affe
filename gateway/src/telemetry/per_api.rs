//! What Prometheus is told of each API.
//!
//! The counters of an API are made when it is compiled and found again when it is compiled once more, so a call costs
//! two additions and no look-up. They go when nothing serves the API any more. At most [`MOST_APIS`] have counters of
//! their own at a time, those that were served first; all others share one set, shown as `other`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// APIs with counters of their own.
pub const MOST_APIS: usize = 1_000;
const OTHER: &str = "other";
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Counters of one API.
#[derive(Debug, Default)]
pub struct ApiCounter {
    classes: [AtomicU64; 4],
    micros: AtomicU64,
}

impl ApiCounter {
    /// Counts an answered call.
    pub fn add(&self, status: u16, elapsed: Duration) {
        // An answer that is final has no status below 200.
        let class = usize::from(status / 100).saturating_sub(2).min(CLASSES.len() - 1);
        self.classes[class].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn is_used(&self) -> bool {
        self.classes.iter().any(|count| count.load(Relaxed) > 0)
    }
}

/// Counters of all APIs.
#[derive(Debug, Default)]
pub struct PerApi {
    own: Mutex<BTreeMap<Box<str>, Weak<ApiCounter>>>,
    other: Arc<ApiCounter>,
}

impl PerApi {
    /// The counters of the API with this label.
    pub fn of(&self, label: &str) -> Arc<ApiCounter> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = own.get(label).and_then(Weak::upgrade) {
            return counter;
        }
        if own.len() >= MOST_APIS {
            own.retain(|_, counter| counter.strong_count() > 0);
        }
        if own.len() >= MOST_APIS {
            return Arc::clone(&self.other);
        }
        let counter = Arc::default();
        own.insert(label.into(), Arc::downgrade(&counter));
        counter
    }

    fn shown(&self) -> Vec<(Box<str>, Arc<ApiCounter>)> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.iter().filter_map(|(label, counter)| Some((label.clone(), counter.upgrade()?)));
        own.chain(self.other.is_used().then(|| (OTHER.into(), Arc::clone(&self.other)))).collect()
    }
}

impl Collector for PerApi {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let shown = self.shown();
        let help =
            "Answered calls of an API that is served, by class of status; of more than 1000 APIs the rest is `other`.";
        let mut requests = encoder.encode_descriptor("doorman_api_requests", help, None, MetricType::Counter)?;
        for (api, counter) in &shown {
            for (class, count) in CLASSES.iter().zip(&counter.classes) {
                let labels = [("api", &**api), ("code_class", class)];
                ConstCounter::new(count.load(Relaxed)).encode(requests.encode_family(&labels)?)?;
            }
        }
        let help = "Time to answer the calls of an API, added up.";
        let name = "doorman_api_request_duration_seconds";
        let mut durations = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (api, counter) in &shown {
            let seconds = Duration::from_micros(counter.micros.load(Relaxed)).as_secs_f64();
            ConstCounter::new(seconds).encode(durations.encode_family(&[("api", &**api)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn of_apis(metrics: &Metrics) -> Vec<String> {
        metrics.render().lines().filter(|line| line.starts_with("doorman_api_re")).map(str::to_owned).collect()
    }

    #[test]
    fn an_api_has_its_series_as_long_as_it_is_served() {
        let metrics = Metrics::default();
        let counter = metrics.apis.of("orders/v1");
        counter.add(204, Duration::from_millis(1_500));
        metrics.apis.of("orders/v1").add(503, Duration::from_millis(500));
        assert_eq!(
            of_apis(&metrics),
            [
                r#"doorman_api_requests_total{api="orders/v1",code_class="2xx"} 1"#,
                r#"doorman_api_requests_total{api="orders/v1",code_class="3xx"} 0"#,
                r#"doorman_api_requests_total{api="orders/v1",code_class="4xx"} 0"#,
                r#"doorman_api_requests_total{api="orders/v1",code_class="5xx"} 1"#,
                r#"doorman_api_request_duration_seconds_total{api="orders/v1"} 2.0"#,
            ]
        );
        drop(counter);
        assert_eq!(of_apis(&metrics), [""; 0]);
    }

    #[test]
    fn series_are_bounded_and_nothing_is_lost() {
        let metrics = Metrics::default();
        let all: Vec<_> = (0..MOST_APIS + 500).map(|n| metrics.apis.of(&format!("api{n}/v1"))).collect();
        for counter in &all {
            counter.add(200, Duration::ZERO);
        }
        let shown = of_apis(&metrics);
        assert_eq!(shown.len(), (MOST_APIS + 1) * 5);
        let other = r#"doorman_api_requests_total{api="other",code_class="2xx"} 500"#;
        assert!(shown.iter().any(|line| line == other));
        drop(all);
        let _late = metrics.apis.of("late/v1");
        assert!(of_apis(&metrics).iter().any(|line| line.contains("late/v1")), "room is given back");
    }
}
