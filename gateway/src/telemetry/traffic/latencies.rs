//! How long answers took, as counts over steps that grow with the latency.
//!
//! Every power of two is cut into eight steps, so a percentile is no more than a sixteenth (6.25 %) off what it would
//! be over the single values; below 16 µs it is exact, and so are the smallest and the largest latency. Two counts
//! together are the count of both, whatever was joined first. There are 201 steps, and only those that occur take room.

use serde::{Deserialize, Serialize};

/// Steps of a power of two, as a power of two.
const FINENESS: u32 = 3;
/// Values below are a step each.
const EXACT: u32 = 1 << (FINENESS + 1);
/// Latencies of two minutes and more share the last step (2^27 µs).
const LONGEST: u32 = 1 << 27;

/// In microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latencies {
    /// Step and how many, in the order of the steps. A number stays at its largest.
    steps: Vec<(u8, u32)>,
    least: u32,
    most: u32,
}

fn step(micros: u32) -> u8 {
    let micros = micros.min(LONGEST);
    let step = if micros < EXACT {
        micros
    } else {
        let power = micros.ilog2();
        let part = (micros >> (power - FINENESS)) & ((1 << FINENESS) - 1);
        EXACT + ((power - FINENESS - 1) << FINENESS) + part
    };
    u8::try_from(step).unwrap_or(u8::MAX)
}

/// The middle of a step.
fn middle(step: u8) -> u32 {
    let step = u32::from(step);
    if step < EXACT {
        return step;
    }
    let (octave, part) = ((step - EXACT) >> FINENESS, (step - EXACT) & ((1 << FINENESS) - 1));
    (((1 << FINENESS) + part) << (octave + 1)) + (1 << octave)
}

impl Latencies {
    /// Counts requests that took equally long.
    pub(super) fn add(&mut self, micros: u32, count: u32) {
        if count > 0 {
            self.widen(micros, micros);
            self.put(step(micros), count);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if other.steps.is_empty() {
            return;
        }
        self.widen(other.least, other.most);
        other.steps.iter().for_each(|(step, count)| self.put(*step, *count));
    }

    fn put(&mut self, step: u8, count: u32) {
        match self.steps.binary_search_by_key(&step, |(own, _)| *own) {
            Ok(at) => self.steps[at].1 = self.steps[at].1.saturating_add(count),
            Err(at) => self.steps.insert(at, (step, count)),
        }
    }

    fn widen(&mut self, least: u32, most: u32) {
        self.least = if self.steps.is_empty() { least } else { self.least.min(least) };
        self.most = self.most.max(most);
    }

    /// Bytes it takes beside itself.
    pub(super) fn heap(&self) -> usize {
        self.steps.capacity() * size_of::<(u8, u32)>()
    }

    pub(super) fn shrink(&mut self) {
        self.steps.shrink_to_fit();
    }

    /// The smallest and the largest.
    pub(super) fn range(&self) -> [u64; 2] {
        [self.least, self.most].map(u64::from)
    }

    /// The latencies that these parts of the requests don't exceed (nearest rank); zero of no requests.
    pub(super) fn percentiles<const N: usize>(&self, parts: [f64; N]) -> [u64; N] {
        let total: u64 = self.steps.iter().map(|(_, count)| u64::from(*count)).sum();
        parts.map(|part| {
            // What is lost in fractions must not cost a rank.
            let rank = part * total as f64 - 1e-6;
            if rank > total.saturating_sub(1) as f64 {
                return u64::from(self.most);
            }
            let mut passed = 0;
            let reached = self.steps.iter().find(|(_, count)| {
                passed += u64::from(*count);
                passed as f64 >= rank
            });
            reached.map_or(0, |(step, _)| u64::from(middle(*step).clamp(self.least, self.most)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST_STEPS: usize = 201;

    fn counted(values: &[u32]) -> Latencies {
        let mut latencies = Latencies::default();
        for value in values {
            latencies.add(*value, 1);
        }
        latencies
    }

    fn nearest_rank(values: &[u32], part: f64) -> u32 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let rank = part * sorted.len() as f64 - 1e-6;
        let reached = (1..=sorted.len()).position(|passed| passed as f64 >= rank);
        sorted[reached.unwrap()]
    }

    #[test]
    fn nothing_has_no_percentiles() {
        assert_eq!(Latencies::default().percentiles([0.5, 1.0]), [0, 0]);
        assert_eq!(Latencies::default().range(), [0, 0]);
    }

    #[test]
    fn every_latency_has_one_of_a_bounded_number_of_steps() {
        let mut latencies = Latencies::default();
        (0..32).for_each(|power| latencies.add(1 << power, 1));
        (0..=u16::MAX).for_each(|part| latencies.add(u32::from(part) << 16, 1));
        (0..4_000_000).step_by(13).for_each(|micros| latencies.add(micros, 1));
        latencies.add(u32::MAX, u32::MAX);
        assert!(latencies.steps.len() <= MOST_STEPS, "{}", latencies.steps.len());
        assert_eq!(usize::from(step(u32::MAX)) + 1, MOST_STEPS);
        assert_eq!(latencies.range(), [0, u64::from(u32::MAX)]);
    }

    proptest! {
        #[test]
        fn percentiles_are_no_more_than_a_sixteenth_off(
            values in prop::collection::vec(prop_oneof![1_u32..2_000, 1_u32..LONGEST, Just(40_000)], 1..300),
            part in 0.0..=1.0_f64,
        ) {
            let [shown] = counted(&values).percentiles([part]);
            let exact = f64::from(nearest_rank(&values, part));
            prop_assert!((shown as f64 - exact).abs() <= exact / 16.0, "{shown} for {exact}");
        }

        #[test]
        fn joined_counts_are_the_count_of_both(
            parts in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..50), 0..6),
        ) {
            let mut joined = Latencies::default();
            parts.iter().rev().for_each(|part| joined.merge(&counted(part)));
            prop_assert_eq!(joined, counted(&parts.concat()));
        }
    }
}
