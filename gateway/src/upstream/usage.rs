//! What Prometheus is told of upstreams: connections and breakers by address, of at most [`MOST_ADDRESSES`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::PoisonError;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Pools;

/// Addresses with series of their own, by name; the others are summed up as `other`.
const MOST_ADDRESSES: usize = 1_000;
const OTHER: &str = "other";

/// How a pool stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Connections that carry calls. One of HTTP/2 does as long as it is open.
    pub(super) busy: u64,
    /// Connections that wait for a call.
    pub(super) idle: u64,
    /// Breakers that are open.
    pub(super) open_breakers: u64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.busy += other.busy;
        self.idle += other.idle;
        self.open_breakers += other.open_breakers;
    }
}

impl Pools {
    fn usage(&self) -> BTreeMap<String, Usage> {
        let pools: Vec<_> = {
            let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.values().filter_map(std::sync::Weak::upgrade).collect()
        };
        let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
        for pool in &pools {
            // APIs may speak TLS with one address in several ways.
            usage.entry(pool.address()).or_default().add(pool.usage());
        }
        if let Some(first_of_rest) = usage.keys().nth(MOST_ADDRESSES).cloned() {
            let mut other = Usage::default();
            usage.split_off(&first_of_rest).into_values().for_each(|one| other.add(one));
            usage.insert(OTHER.to_owned(), other);
        }
        usage
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let usage = self.usage();
        let help = "Open connections to an upstream address; of more than 1000 addresses the rest is `other`.";
        let mut connections =
            encoder.encode_descriptor("doorman_upstream_connections", help, None, MetricType::Gauge)?;
        for (address, usage) in &usage {
            for (state, count) in [("busy", usage.busy), ("idle", usage.idle)] {
                let labels = [("address", &**address), ("state", state)];
                ConstGauge::new(count).encode(connections.encode_family(&labels)?)?;
            }
        }
        let help = "Breakers of an upstream address that are open: its calls are refused.";
        let mut breakers =
            encoder.encode_descriptor("doorman_upstream_breakers_open", help, None, MetricType::Gauge)?;
        for (address, usage) in &usage {
            ConstGauge::new(usage.open_breakers).encode(breakers.encode_family(&[("address", &**address)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use doorman_crds::api::UpstreamAddress;

    use std::sync::Arc;

    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::upstream::{BreakerRules, PoolOptions, Targets};

    #[test]
    fn addresses_are_bounded_and_tell_of_their_breakers() {
        let pools = Pools::new(PoolOptions::local());
        let address = |n: usize| format!("http://up{n:04}:80/base").parse::<UpstreamAddress>().unwrap();
        let held: Vec<_> = (0..1_200).map(|n| Targets::new(&pools, None, &[]).of(&address(n))).collect();
        let others = Targets::new(&pools, None, &[]).of(&address(7));
        assert!(Arc::ptr_eq(&held[7].0, &others.0) && !Arc::ptr_eq(&held[7].1, &others.1));
        let rules = BreakerRules { threshold: 1, open: Duration::from_secs(30) };
        for n in [7, 1_100, 1_101] {
            held[n].1.admit().unwrap().failed(rules);
        }
        let text = Metrics::default().showing(pools.clone()).render();
        for line in [
            r#"doorman_upstream_breakers_open{address="up0007:80"} 1"#,
            r#"doorman_upstream_breakers_open{address="up0008:80"} 0"#,
            r#"doorman_upstream_breakers_open{address="other"} 2"#,
            r#"doorman_upstream_connections{address="up0000:80",state="idle"} 0"#,
        ] {
            assert!(text.lines().any(|own| own == line), "{line}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("doorman_upstream_breakers_open{")).count(), 1_001);
        drop((held, others));
        assert!(!Metrics::default().showing(pools).render().contains("address="), "nobody calls them any more");
    }
}
