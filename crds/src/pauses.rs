//! Pauses between two tries of a watch that was interrupted.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;

/// Longest pause. The usual half minute is long when an API server has come back; a thousand watchers that ask every few
/// seconds, each at another time, are no load.
const LONGEST: Duration = Duration::from_secs(5);

/// As usual for watches, but never longer than five seconds. Pauses grow, are scattered, and begin anew after a quiet time.
#[derive(Default)]
pub struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0.next()?;
        let least = LONGEST / 2;
        // What is cut off scatters what is left.
        let over = u64::try_from((pause.as_nanos()) % least.as_nanos()).map_or(least, Duration::from_nanos);
        Some(if pause <= LONGEST { pause } else { least + over })
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_never_end_or_get_long() {
        let pauses: Vec<_> = Pauses::default().take(50).collect();
        assert_eq!(pauses.len(), 50);
        assert!(pauses[0] < Duration::from_secs(2), "{:?}", pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST));
        assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST / 2));
        assert!(pauses[11..].iter().any(|pause| *pause != pauses[10]), "{:?}", &pauses[10..]);
    }
}
